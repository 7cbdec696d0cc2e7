// attention_fused: o = softmax(mask(softcap(q · kᵀ × scale) − slope · distance + bias)) · v in one pass over the keys; scores are
// never stored.
//
//   q  rows of HEAD_DIM elements (q_plain, q_bf16), o  rows of VALUE_DIM (o_plain, o_bf16), a row for each of
//   [batch, heads, seq_q] in an order that the strides say, those of q perhaps with others between them; k, v likewise for
//   [batch, kv_heads, seq_kv] (kv_plain, kv_bf16, kv_int8), or in pages (rows_paged); query head h reads key head
//   h / (heads / kv_heads)
//   mask, bias  broadcast to [batch, heads, seq_q, seq_kv]; slopes  of ALiBi (slopes_dense);
//   which queries and keys there are, and which belong together: queries_*, keys_*, parts_*;
//   sinks  [heads] (sinks_dense); lse  [batch, heads, seq_q] (lse_dense)
//
// A workgroup of 8 × 8 lanes owns QUERIES query rows of one head, or the few rows of HEADS_PER_TILE heads that read one key
// head, and walks the keys in tiles of KEYS. A lane owns 4 rows × 4
// keys of the scores, and the same rows × 4 of every CHUNK value dimensions of o. Head dimensions pass through workgroup
// memory CHUNK at a time, queries and keys transposed. The running maximum and sum are FlashAttention's
// (arXiv:2205.14135); o stays unnormalised until the end (arXiv:2307.08691).
//
// Inner loops touch named values only, never an array by a loop's variable, which a driver that does not unroll keeps in
// memory: see the op's module docs.
//
// Edges: rows, keys and dimensions past the end read as zero; keys past the end weigh nothing. With GUARDED, a NaN or
// infinity in v reaches only the rows that look at its key: tiles hold zero in its place and a rare path adds it
// (attention_tiles). Key tiles that the band, the lengths or a boolean mask (skip_masked) hide from all rows are not loaded.

const HEAD_DIM: u32 = 64u; // host
const VALUE_DIM: u32 = 64u; // host
const GUARDED: bool = true; // host
const HEADS_PER_TILE: u32 = 1u; // host

const LOWEST: f32 = -3.4028234e38;
const EDGE: u32 = 8u;
const QUERIES: u32 = 4u * EDGE;
const KEYS: u32 = 4u * EDGE;
const CHUNK: u32 = 4u * EDGE;
const VALUE_CHUNKS: u32 = (VALUE_DIM + CHUNK - 1u) / CHUNK;
const LANES: u32 = EDGE * EDGE;
const_assert KEYS == CHUNK; // keys and values share wg_tile

struct Params {
    batch: u32,
    heads: u32,
    kv_heads: u32,
    seq_q: u32,
    seq_kv: u32,
    scale: f32,
    fill: f32,
    excluded: f32,
    softcap: f32,
    q_batch: u32, // strides count rows
    q_head: u32,
    q_row: u32,
    kv_batch: u32,
    kv_head: u32,
    kv_row: u32,
    page_size: u32,
    per_sequence: u32,
    pages: u32,
    band_follows: u32,
    mask_keys: u32,
    bias_keys: u32,
    band_lower: i32,
    band_upper: i32,
    visit_lower: i32,
    visit_upper: i32,
    mask_batch: u32,
    mask_head: u32,
    mask_query: u32,
    mask_key: u32,
    bias_batch: u32,
    bias_head: u32,
    bias_query: u32,
    bias_key: u32,
    position: i32,
    slope_sequence: u32,
    sequences: u32,
    parts: u32, // of the rows of one batch element
    rows_per_head: u32, // of a tile with several heads
    o_batch: u32, // from head to head the output's rows lie as the queries' do
    o_row: u32,
    k_first: u32, // rows before the first of the keys, and of the values
    v_first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

var<workgroup> wg_p: array<vec4<f32>, KEYS * EDGE>; // [key][row / 4]
var<workgroup> wg_rows: array<vec4<f32>, EDGE * EDGE>; // [row / 4][lane of the rows]

// Products of four rows' numbers with four columns' numbers, one row a column of the matrix.
fn outer(rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(rows.x * columns, rows.y * columns, rows.z * columns, rows.w * columns);
}

fn masked(tile: Tile, row: u32, key: u32, product: f32) -> f32 {
    let head = head_of(tile, row);
    let i = query_of(tile, row);
    if key >= tile.length || i >= tile.s.q_count {
        return params.excluded;
    }
    let score = biased(sloped(capped(product * params.scale), tile.s, head, i, key), tile.s, head, i, key);
    return select(params.fill, score, allowed(tile.s, head, i, key));
}

fn masked_row(tile: Tile, row: u32, key: u32, products: vec4<f32>) -> vec4<f32> {
    return vec4(
        masked(tile, row, key, products.x),
        masked(tile, row, key + 1u, products.y),
        masked(tile, row, key + 2u, products.z),
        masked(tile, row, key + 3u, products.w),
    );
}

// exp(score − maximum), and zero for −inf whatever the maximum is.
fn weights(scores: vec4<f32>, maximum: vec4<f32>) -> vec4<f32> {
    let excluded = vec4(is_excluded(scores.x), is_excluded(scores.y), is_excluded(scores.z), is_excluded(scores.w));
    return select(exp(scores - maximum), vec4<f32>(), excluded);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = workgroup.x + workgroup.y * workgroups.x;
    let groups = params.heads / HEADS_PER_TILE;
    let head = at / params.parts % groups * HEADS_PER_TILE;
    let batch = at / params.parts / groups;
    if batch >= params.batch {
        return;
    }
    let mine = part(batch, at % params.parts, QUERIES);
    if mine.rows == 0u {
        return;
    }
    let s = mine.s;
    let first_row = mine.first;
    // Without a query there is nothing to look at.
    let length = select(s.k_count, 0u, first_row >= s.q_count);
    let q_start = batch * params.q_batch + head * params.q_head + (s.q_begin + first_row) * params.q_row;
    let o_start = batch * params.o_batch + head * params.q_head + (s.q_begin + first_row) * params.o_row;
    let kv_batch = key_batch(s.index);
    let kv_head = head / (params.heads / params.kv_heads);
    let rows_of_a_head = select(QUERIES, params.rows_per_head, HEADS_PER_TILE > 1u);
    let rows = select(mine.rows, HEADS_PER_TILE * params.rows_per_head, HEADS_PER_TILE > 1u);
    let tile = Tile(
        s, batch, head, first_row, rows, length, q_start, o_start, kv_origin(kv_batch, s.k_begin),
        kv_start(kv_batch, kv_head, s.k_begin));
    let x = lane % EDGE; // which four keys, or value dimensions
    let y = lane / EDGE; // which four rows
    let row = 4u * y;

    // Keys that some row of the tile may look at.
    let shift = band_shift(s);
    let last_row = i32(min(first_row + rows_of_a_head, s.q_count)) - 1;
    let begin = u32(clamp(i32(first_row) + params.visit_lower + shift, 0, i32(length))) / KEYS * KEYS;
    let end = u32(clamp(last_row + params.visit_upper + shift + 1, 0, i32(length)));

    var maximum = vec4(LOWEST); // of each row
    var sum = vec4<f32>(); // of each row, over the keys of this lane only
    var out: array<mat4x4<f32>, max(VALUE_CHUNKS, 1u)>; // a column of the matrix is a row of o
    for (var first_key = begin; first_key < end; first_key += KEYS) {
        if nothing_seen(tile, first_key, lane) {
            continue;
        }
        stage_rows(tile.kv_origin, tile.kv_start, first_key, length, lane);
        var scores = mat4x4<f32>();
        for (var first_d = 0u; first_d < HEAD_DIM; first_d += CHUNK) {
            workgroupBarrier();
            stage_scores(tile, first_key, first_d, lane);
            workgroupBarrier();
            for (var d = 0u; d < min(CHUNK, HEAD_DIM - first_d); d++) {
                scores += outer(wg_q[d * EDGE + y], wg_tile[d * EDGE + x]);
            }
        }
        let key = first_key + 4u * x;
        // A column is a key from here on.
        scores = transpose(mat4x4<f32>(
            masked_row(tile, row, key, scores[0]),
            masked_row(tile, row + 1u, key, scores[1]),
            masked_row(tile, row + 2u, key, scores[2]),
            masked_row(tile, row + 3u, key, scores[3]),
        ));

        wg_rows[lane] = max(max(scores[0], scores[1]), max(scores[2], scores[3]));
        workgroupBarrier();
        var new_maximum = maximum;
        for (var i = 0u; i < EDGE; i++) {
            new_maximum = max(new_maximum, wg_rows[y * EDGE + i]);
        }
        let shrink = exp(maximum - new_maximum);
        maximum = new_maximum;
        let p = mat4x4<f32>(
            weights(scores[0], maximum), weights(scores[1], maximum), weights(scores[2], maximum), weights(scores[3], maximum));
        sum = sum * shrink + p[0] + p[1] + p[2] + p[3];
        let p_start = 4u * x * EDGE + y;
        wg_p[p_start] = p[0];
        wg_p[p_start + EDGE] = p[1];
        wg_p[p_start + 2u * EDGE] = p[2];
        wg_p[p_start + 3u * EDGE] = p[3];

        for (var c = 0u; c < VALUE_CHUNKS; c++) {
            workgroupBarrier();
            if GUARDED && lane == 0u {
                atomicStore(&wg_poisoned, 0u);
            }
            if GUARDED {
                workgroupBarrier();
            }
            stage_values(tile, first_key, c * CHUNK, lane);
            workgroupBarrier();
            let old = out[c];
            var rows = mat4x4<f32>(old[0] * shrink.x, old[1] * shrink.y, old[2] * shrink.z, old[3] * shrink.w);
            for (var j = 0u; j < KEYS; j++) {
                rows += outer(wg_p[j * EDGE + y], wg_tile[j * EDGE + x]);
            }
            if GUARDED && atomicLoad(&wg_poisoned) != 0u {
                let d = c * CHUNK + 4u * x;
                rows += mat4x4<f32>(
                    poison(tile, first_key, d, row),
                    poison(tile, first_key, d, row + 1u),
                    poison(tile, first_key, d, row + 2u),
                    poison(tile, first_key, d, row + 3u),
                );
            }
            out[c] = rows;
        }
    }

    workgroupBarrier();
    wg_rows[lane] = sum;
    workgroupBarrier();
    var total = vec4<f32>();
    for (var i = 0u; i < EDGE; i++) {
        total += wg_rows[y * EDGE + i];
    }
    // A sink is one more score, without a value. A total of zero means that the row looks at nothing; a NaN is kept.
    let drains = vec4(
        sink(head_of(tile, row)), sink(head_of(tile, row + 1u)), sink(head_of(tile, row + 2u)), sink(head_of(tile, row + 3u)));
    let top = max(maximum, drains);
    let shrink = exp(maximum - top);
    total = total * shrink + weights(drains, top);
    let inverse = select(shrink / total, vec4<f32>(), total == vec4<f32>());
    for (var c = 0u; c < VALUE_CHUNKS; c++) {
        let d = c * CHUNK + 4u * x;
        store(tile, row, d, out[c][0] * inverse.x);
        store(tile, row + 1u, d, out[c][1] * inverse.y);
        store(tile, row + 2u, d, out[c][2] * inverse.z);
        store(tile, row + 3u, d, out[c][3] * inverse.w);
    }
    if x < 4u {
        store_sum(tile, row + x, top[x], total[x]);
    }
}
