// attention_fused: o = softmax(mask(q · kᵀ × scale + bias)) · v in one pass over the keys; scores are never stored.
//
//   q  [batch, heads, seq_q, HEAD_DIM]       k  [batch, kv_heads, seq_kv, HEAD_DIM]
//   v  [batch, kv_heads, seq_kv, VALUE_DIM]  o  [batch, heads, seq_q, VALUE_DIM]
//   mask, bias  broadcast to [batch, heads, seq_q, seq_kv]; query head h reads key head h / (heads / kv_heads)
//
// A workgroup of 8 × 8 lanes owns QUERIES query rows of one head and walks the keys in tiles of KEYS. A lane owns ROWS rows
// of the scores × 4 keys, and the same rows of o × 4 of every CHUNK value dimensions. Head dimensions pass through workgroup
// memory CHUNK at a time, the key tile transposed. The running maximum and sum are FlashAttention's (arXiv:2205.14135);
// o stays unnormalised until the end (arXiv:2307.08691).
//
// Edges: rows, keys and dimensions past the end read as zero; keys past the end weigh nothing. With GUARDED, a NaN or
// infinity in v reaches only the rows that look at its key: tiles hold zero in its place and a rare path adds it.

const HEAD_DIM: u32 = 64u; // host
const VALUE_DIM: u32 = 64u; // host
const ROWS: u32 = 4u; // host
const GUARDED: bool = true; // host
alias Elem = f32; // host

const LOWEST: f32 = -3.4028234e38;
const EDGE: u32 = 8u;
const QUERIES: u32 = EDGE * ROWS;
const GROUPS: u32 = EDGE; // key tile and chunk, in vec4
const KEYS: u32 = 4u * GROUPS;
const CHUNK: u32 = 4u * GROUPS;
const VALUE_CHUNKS: u32 = max(1u, (VALUE_DIM + CHUNK - 1u) / CHUNK); // an array has elements, even where there is no value
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
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Elem>;
@group(0) @binding(2) var<storage, read> k: array<Elem>;
@group(0) @binding(3) var<storage, read> v: array<Elem>;
@group(0) @binding(4) var<storage, read_write> o: array<Elem>;

var<workgroup> wg_q: array<f32, CHUNK * QUERIES>; // [dimension][row]
var<workgroup> wg_tile: array<vec4<f32>, CHUNK * GROUPS>; // keys [dimension][key / 4], then values [key][dimension / 4]
var<workgroup> wg_p: array<f32, KEYS * QUERIES>; // [key][row]
var<workgroup> wg_rows: array<f32, QUERIES * EDGE>; // [row][lane of the row]
var<workgroup> wg_poisoned: atomic<u32>; // the value tile holds a NaN or infinity

struct Tile {
    batch: u32,
    head: u32,
    first_row: u32,
    q_start: u32,
    k_start: u32,
    v_start: u32,
}

fn q_element(tile: Tile, row: u32, d: u32) -> f32 {
    if tile.first_row + row >= params.seq_q || d >= HEAD_DIM {
        return 0.0;
    }
    return f32(q[tile.q_start + row * HEAD_DIM + d]);
}

fn k_element(tile: Tile, key: u32, d: u32) -> f32 {
    if key >= params.seq_kv || d >= HEAD_DIM {
        return 0.0;
    }
    return f32(k[tile.k_start + key * HEAD_DIM + d]);
}

fn v_element(tile: Tile, key: u32, d: u32) -> f32 {
    if key >= params.seq_kv || d >= VALUE_DIM {
        return 0.0;
    }
    return f32(v[tile.v_start + key * VALUE_DIM + d]);
}

// CHUNK dimensions of the query rows and of one key tile.
fn stage_scores(tile: Tile, first_key: u32, first_d: u32, lane: u32) {
    for (var i = lane; i < CHUNK * QUERIES; i += LANES) {
        let d = i % CHUNK;
        let row = i / CHUNK;
        wg_q[d * QUERIES + row] = q_element(tile, row, first_d + d);
    }
    for (var i = lane; i < CHUNK * GROUPS; i += LANES) {
        let d = first_d + i % CHUNK;
        let key = first_key + 4u * (i / CHUNK);
        wg_tile[i % CHUNK * GROUPS + i / CHUNK] = vec4(
            k_element(tile, key, d), k_element(tile, key + 1u, d), k_element(tile, key + 2u, d), k_element(tile, key + 3u, d));
    }
}

// CHUNK dimensions of one value tile.
fn stage_values(tile: Tile, first_key: u32, first_d: u32, lane: u32) {
    for (var i = lane; i < KEYS * GROUPS; i += LANES) {
        let key = first_key + i / GROUPS;
        let d = first_d + 4u * (i % GROUPS);
        var values = vec4(
            v_element(tile, key, d), v_element(tile, key, d + 1u), v_element(tile, key, d + 2u), v_element(tile, key, d + 3u));
        if GUARDED {
            let finite = vec4(is_finite(values.x), is_finite(values.y), is_finite(values.z), is_finite(values.w));
            if !all(finite) {
                atomicStore(&wg_poisoned, 1u);
            }
            values = select(vec4<f32>(), values, finite);
        }
        wg_tile[i] = values;
    }
}

// Weight times value for what stage_values left out, where the weight is not zero.
fn poison(tile: Tile, first_key: u32, first_d: u32, row: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    for (var key = 0u; key < KEYS; key++) {
        let weight = wg_p[key * QUERIES + row];
        for (var i = 0u; i < 4u; i++) {
            let value = v_element(tile, first_key + key, first_d + i);
            if weight != 0.0 && !is_finite(value) {
                sum[i] += weight * value;
            }
        }
    }
    return sum;
}

fn masked(tile: Tile, row: u32, key: u32, product: f32) -> f32 {
    if key >= params.seq_kv {
        return params.excluded;
    }
    let i = min(tile.first_row + row, params.seq_q - 1u);
    let score = biased(product * params.scale, tile.batch, tile.head, i, key);
    return select(params.fill, score, allowed(tile.batch, tile.head, i, key));
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tiles = (params.seq_q + QUERIES - 1u) / QUERIES;
    let at = workgroup.x + workgroup.y * workgroups.x;
    let head = at / tiles % params.heads;
    let batch = at / tiles / params.heads;
    if batch >= params.batch {
        return;
    }
    let first_row = at % tiles * QUERIES;
    let kv_head = batch * params.kv_heads + head / (params.heads / params.kv_heads);
    let q_row = (batch * params.heads + head) * params.seq_q + first_row;
    let tile = Tile(
        batch, head, first_row, q_row * HEAD_DIM, kv_head * params.seq_kv * HEAD_DIM, kv_head * params.seq_kv * VALUE_DIM);
    let x = lane % EDGE;
    let y = lane / EDGE * ROWS;

    // Keys that some row of the tile may look at.
    let last_row = i32(min(first_row + QUERIES, params.seq_q)) - 1;
    let begin = u32(clamp(i32(first_row) + params.visit_lower, 0, i32(params.seq_kv))) / KEYS * KEYS;
    let end = u32(clamp(last_row + params.visit_upper + 1, 0, i32(params.seq_kv)));

    var maximum: array<f32, ROWS>;
    var sum: array<f32, ROWS>; // over the keys of this lane only
    var out: array<vec4<f32>, ROWS * VALUE_CHUNKS>;
    for (var r = 0u; r < ROWS; r++) {
        maximum[r] = LOWEST;
    }

    for (var first_key = begin; first_key < end; first_key += KEYS) {
        var scores: array<vec4<f32>, ROWS>;
        for (var first_d = 0u; first_d < HEAD_DIM; first_d += CHUNK) {
            workgroupBarrier();
            stage_scores(tile, first_key, first_d, lane);
            workgroupBarrier();
            for (var d = 0u; d < min(CHUNK, HEAD_DIM - first_d); d++) {
                let keys = wg_tile[d * GROUPS + x];
                for (var r = 0u; r < ROWS; r++) {
                    scores[r] += wg_q[d * QUERIES + y + r] * keys;
                }
            }
        }

        for (var r = 0u; r < ROWS; r++) {
            let key = first_key + 4u * x;
            scores[r] = vec4(
                masked(tile, y + r, key, scores[r].x),
                masked(tile, y + r, key + 1u, scores[r].y),
                masked(tile, y + r, key + 2u, scores[r].z),
                masked(tile, y + r, key + 3u, scores[r].w),
            );
            wg_rows[(y + r) * EDGE + x] = max(max(scores[r].x, scores[r].y), max(scores[r].z, scores[r].w));
        }
        workgroupBarrier();
        for (var r = 0u; r < ROWS; r++) {
            var new_maximum = maximum[r];
            for (var i = 0u; i < EDGE; i++) {
                new_maximum = max(new_maximum, wg_rows[(y + r) * EDGE + i]);
            }
            let shrink = exp(maximum[r] - new_maximum);
            maximum[r] = new_maximum;
            sum[r] *= shrink;
            for (var c = 0u; c < VALUE_CHUNKS; c++) {
                out[c * ROWS + r] *= shrink;
            }
            for (var i = 0u; i < 4u; i++) {
                let weight = select(exp(scores[r][i] - new_maximum), 0.0, is_excluded(scores[r][i]));
                sum[r] += weight;
                wg_p[(4u * x + i) * QUERIES + y + r] = weight;
            }
        }

        for (var c = 0u; c < VALUE_CHUNKS; c++) {
            workgroupBarrier();
            if GUARDED && lane == 0u {
                atomicStore(&wg_poisoned, 0u);
            }
            workgroupBarrier();
            stage_values(tile, first_key, c * CHUNK, lane);
            workgroupBarrier();
            for (var key = 0u; key < KEYS; key++) {
                let values = wg_tile[key * GROUPS + x];
                for (var r = 0u; r < ROWS; r++) {
                    out[c * ROWS + r] += wg_p[key * QUERIES + y + r] * values;
                }
            }
            if GUARDED && atomicLoad(&wg_poisoned) != 0u {
                for (var r = 0u; r < ROWS; r++) {
                    out[c * ROWS + r] += poison(tile, first_key, c * CHUNK + 4u * x, y + r);
                }
            }
        }
    }

    workgroupBarrier();
    for (var r = 0u; r < ROWS; r++) {
        wg_rows[(y + r) * EDGE + x] = sum[r];
    }
    workgroupBarrier();
    for (var r = 0u; r < ROWS; r++) {
        var total = 0.0;
        for (var i = 0u; i < EDGE; i++) {
            total += wg_rows[(y + r) * EDGE + i];
        }
        // A total of zero means that the row looks at nothing. A NaN total is kept.
        let inverse = select(1.0 / total, 0.0, total == 0.0);
        for (var c = 0u; c < VALUE_CHUNKS; c++) {
            for (var i = 0u; i < 4u; i++) {
                let d = c * CHUNK + 4u * x + i;
                if first_row + y + r < params.seq_q && d < VALUE_DIM {
                    o[(q_row + y + r) * VALUE_DIM + d] = Elem(out[c * ROWS + r][i] * inverse);
                }
            }
        }
    }
}
