// attention_combine: o = Σ exp(lseₛ − m) · oₛ / (Σ exp(lseₛ − m) + exp(sink − m)) over shares s of the keys, m being the greatest
// of lseₛ and the sink; and lse = m + ln of the divisor.
//
//   partials  [splits, batch, heads, seq_q, VALUE_DIM], f32; sums  [splits, batch, heads, seq_q], f32, the lseₛ
//   sinks     [heads], one more score for each row of a head (sinks_dense)
//   o         rows of VALUE_DIM (o_plain, o_vectors, o_bf16), a row for each of [batch, heads, seq_q] in an order that the strides
//             say; lse  [batch, heads, seq_q] (lse_dense), −inf where nothing is added up, and for rows that are no query (queries_*)
//
// A lane owns four elements of a row, or fewer at its end. A share whose lseₛ is −inf takes no part, whatever its oₛ is.

const VALUE_DIM: u32 = 64u; // host

const LANES: u32 = 64u;
const PARTS: u32 = max((VALUE_DIM + 3u) / 4u, 1u);
const LOWEST: f32 = -3.4028234e38;

struct Params {
    rows: u32,
    heads: u32,
    seq_q: u32,
    seq_kv: u32,
    sequences: u32,
    splits: u32,
    o_batch: u32, // strides count rows
    o_head: u32,
    o_row: u32,
    excluded: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read> sums: array<f32>;

fn weight(score: f32, maximum: f32) -> f32 {
    return select(exp(score - maximum), 0.0, is_excluded(score));
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (workgroup.x + workgroup.y * workgroups.x) * LANES + lane;
    let row = at / PARTS;
    if row >= params.rows {
        return;
    }
    let d = 4u * (at % PARTS);
    let i = row % params.seq_q;
    let head = row / params.seq_q % params.heads;
    let batch = row / params.seq_q / params.heads;
    let drain = sink(head);
    var maximum = max(LOWEST, drain);
    for (var share = 0u; share < params.splits; share++) {
        maximum = max(maximum, sums[share * params.rows + row]);
    }
    var total = weight(drain, maximum);
    var out = vec4<f32>();
    for (var share = 0u; share < params.splits; share++) {
        let from_share = weight(sums[share * params.rows + row], maximum);
        total += from_share;
        if from_share != 0.0 {
            let first = (share * params.rows + row) * VALUE_DIM + d;
            var four = vec4<f32>();
            for (var e = 0u; e < min(4u, VALUE_DIM - d); e++) {
                four[e] = partials[first + e];
            }
            out += from_share * four;
        }
    }
    // A total of zero means that the row looks at nothing; a NaN is kept.
    out = select(out / total, vec4<f32>(), total == 0.0);
    o_store(batch * params.o_batch + head * params.o_head + i * params.o_row, d, out);
    if d == 0u {
        let s = sequence_at(batch, i);
        let exists = i - s.q_begin < s.q_count;
        lse_store(row, select(params.excluded, maximum + log(total), exists && total != 0.0));
    }
}
