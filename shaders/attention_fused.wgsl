// attention_fused: o = softmax(mask(softcap(q · kᵀ × scale) − slope · distance + bias)) · v in one pass over the keys; scores are
// never stored.
//
//   q  rows of HEAD_DIM elements (q_plain, q_vectors, q_bf16), o  rows of VALUE_DIM (o_plain, o_vectors, o_bf16), a row for each
//   of [batch, heads, seq_q] in an order that the strides say, those of q perhaps with others between them; k, v likewise for
//   [batch, kv_heads, seq_kv] (kv_plain, kv_vectors, kv_bf16, kv_int8), or in pages (rows_paged); query head h reads key head
//   h / (heads / kv_heads)
//   mask, bias  broadcast to [batch, heads, seq_q, seq_kv]; slopes  of ALiBi (slopes_dense);
//   which queries and keys there are, and which belong together: queries_*, keys_*, parts_*;
//   sinks  [heads] (sinks_dense); lse  [batch, heads, seq_q] (lse_dense)
//
// A workgroup of 8 × EDGE_Y lanes owns QUERIES query rows of one head, or the few rows of HEADS_PER_TILE heads that read one key
// head, and walks the keys in tiles of KEYS. A lane owns 8 rows × 8 keys of the scores, and the same rows × 8 of every WIDTH
// value dimensions of o. Head dimensions pass through workgroup memory CHUNK at a time, queries and keys transposed; then the
// weights take their place, and values come KEY_SLICE keys at a time. The running maximum and sum are FlashAttention's
// (arXiv:2205.14135); o stays unnormalised until the end (arXiv:2307.08691).
//
// Inner loops touch named values only, never an array by a loop's variable, which a driver that does not unroll keeps in
// memory: see the op's module docs.
//
// Edges: rows, keys and dimensions past the end read as zero; keys past the end weigh nothing. With GUARDED, a NaN or
// infinity in v reaches only the rows that look at its key: tiles that hold one take a rare path. Key tiles that
// the band, the lengths or a boolean mask (skip_masked) hide from all rows are not loaded, and those in which every row looks at
// every key are not masked.

const HEAD_DIM: u32 = 64u; // host
const VALUE_DIM: u32 = 64u; // host
const GUARDED: bool = true; // host
const HEADS_PER_TILE: u32 = 1u; // host
const QUERIES: u32 = 64u; // host
const KEYS: u32 = 64u; // host
const KEY_SLICE: u32 = 16u; // host

const EDGE_X: u32 = 8u;
const EDGE_Y: u32 = QUERIES / 8u;
const LANES: u32 = EDGE_X * EDGE_Y;
const CHUNK: u32 = 32u;
const WIDTH: u32 = 8u * EDGE_X;
const VALUE_CHUNKS: u32 = (VALUE_DIM + WIDTH - 1u) / WIDTH;
const_assert QUERIES % 8u == 0u && KEYS == 8u * EDGE_X && KEYS % KEY_SLICE == 0u;
const_assert KEY_SLICE >= EDGE_Y; // the rows' maxima fit into the place of the values

// Weights of four rows, one key a column of the matrix as in the scores.
fn weighed(scores: mat4x4<f32>, maximum: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        weights(scores[0], maximum), weights(scores[1], maximum), weights(scores[2], maximum), weights(scores[3], maximum));
}

fn greatest(scores: mat4x4<f32>, others: mat4x4<f32>) -> vec4<f32> {
    return max(
        max(max(scores[0], scores[1]), max(scores[2], scores[3])), max(max(others[0], others[1]), max(others[2], others[3])));
}

fn added(weights: mat4x4<f32>) -> vec4<f32> {
    return weights[0] + weights[1] + weights[2] + weights[3];
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_at(workgroup.x + workgroup.y * workgroups.x);
    if tile.rows == 0u {
        return;
    }
    let x = lane % EDGE_X; // keys x, x + 8, …; value dimensions 4 x … and 32 + 4 x … of a chunk
    let y = lane / EDGE_X; // rows 4 y … and 4 (EDGE_Y + y) …
    let row_0 = 4u * y;
    let row_1 = 4u * (EDGE_Y + y);

    var maximum_0 = vec4(LOWEST); // of each row
    var maximum_1 = vec4(LOWEST);
    var sum_0 = vec4<f32>(); // of each row, over the keys of this lane only
    var sum_1 = vec4<f32>();
    // Four matrices a chunk: rows 0 and 1, each with dimensions 0 and 1. A column is a row of o.
    var out: array<mat4x4<f32>, 4u * max(VALUE_CHUNKS, 1u)>;
    let span = keys_of(tile);
    for (var first_key = span.x; first_key < span.y; first_key += KEYS) {
        if nothing_seen(tile, first_key, lane) {
            continue;
        }
        stage_rows(tile.kv_origin, tile.kv_start, first_key, tile.length, lane);
        // Rows 0 or 1, keys 0 or 1. A column is a row.
        var s_00 = mat4x4<f32>();
        var s_01 = mat4x4<f32>();
        var s_10 = mat4x4<f32>();
        var s_11 = mat4x4<f32>();
        for (var first_d = 0u; first_d < HEAD_DIM; first_d += CHUNK) {
            workgroupBarrier();
            stage_scores(tile, first_key, first_d, lane);
            workgroupBarrier();
            for (var d = 0u; d < min(CHUNK, HEAD_DIM - first_d); d++) {
                let q_0 = wg_tile[d * ROW_STRIDE + y];
                let q_1 = wg_tile[d * ROW_STRIDE + EDGE_Y + y];
                let k_0 = wg_tile[KEYS_AT + d * KEY_STRIDE + x];
                let k_1 = wg_tile[KEYS_AT + d * KEY_STRIDE + EDGE_X + x];
                s_00 += outer(q_0, k_0);
                s_01 += outer(q_0, k_1);
                s_10 += outer(q_1, k_0);
                s_11 += outer(q_1, k_1);
            }
        }
        // A column is a key from here on.
        s_00 = transpose(s_00) * params.scale;
        s_01 = transpose(s_01) * params.scale;
        s_10 = transpose(s_10) * params.scale;
        s_11 = transpose(s_11) * params.scale;

        workgroupBarrier();
        if GUARDED && lane == 0u {
            atomicStore(&wg_poisoned, 0u);
        }
        // Where this lane's weights will be, EDGE_X keys apart.
        let near = x * ROW_STRIDE + y;
        let far = near + 4u * EDGE_X * ROW_STRIDE;
        if !is_whole(tile, first_key) {
            // In a loop over workgroup memory, or the rule would be there 64 times.
            keep_weights(near, s_00);
            keep_weights(far, s_01);
            keep_weights(near + EDGE_Y, s_10);
            keep_weights(far + EDGE_Y, s_11);
            for (var i = 0u; i < rounds(tile, 16u); i++) {
                let at = near + i / 2u * EDGE_X * ROW_STRIDE + i % 2u * EDGE_Y;
                let row = select(row_0, row_1, i % 2u == 1u);
                let key = first_key + x + i / 2u * EDGE_X;
                let scores = wg_tile[at];
                wg_tile[at] = vec4(
                    masked(tile, row, key, scores.x),
                    masked(tile, row + 1u, key, scores.y),
                    masked(tile, row + 2u, key, scores.z),
                    masked(tile, row + 3u, key, scores.w),
                );
            }
            s_00 = kept_weights(near);
            s_01 = kept_weights(far);
            s_10 = kept_weights(near + EDGE_Y);
            s_11 = kept_weights(far + EDGE_Y);
        }
        wg_tile[VALUES_AT + y * EDGE_X + x] = greatest(s_00, s_01);
        wg_tile[VALUES_AT + (EDGE_Y + y) * EDGE_X + x] = greatest(s_10, s_11);
        workgroupBarrier();
        let before_0 = maximum_0;
        let before_1 = maximum_1;
        for (var i = 0u; i < EDGE_X; i++) {
            maximum_0 = max(maximum_0, wg_tile[VALUES_AT + y * EDGE_X + i]);
            maximum_1 = max(maximum_1, wg_tile[VALUES_AT + (EDGE_Y + y) * EDGE_X + i]);
        }
        let shrink_0 = power(before_0 - maximum_0);
        let shrink_1 = power(before_1 - maximum_1);
        let p_00 = weighed(s_00, maximum_0);
        let p_01 = weighed(s_01, maximum_0);
        let p_10 = weighed(s_10, maximum_1);
        let p_11 = weighed(s_11, maximum_1);
        sum_0 = sum_0 * shrink_0 + (added(p_00) + added(p_01));
        sum_1 = sum_1 * shrink_1 + (added(p_10) + added(p_11));
        keep_weights(near, p_00);
        keep_weights(far, p_01);
        keep_weights(near + EDGE_Y, p_10);
        keep_weights(far + EDGE_Y, p_11);

        for (var c = 0u; c < VALUE_CHUNKS; c++) {
            var o_00 = scaled(out[4u * c], shrink_0);
            var o_01 = scaled(out[4u * c + 1u], shrink_0);
            var o_10 = scaled(out[4u * c + 2u], shrink_1);
            var o_11 = scaled(out[4u * c + 3u], shrink_1);
            for (var slice = 0u; slice < min(KEYS, span.y - first_key); slice += KEY_SLICE) {
                workgroupBarrier();
                stage_values(tile, first_key + slice, c * WIDTH, lane);
                workgroupBarrier();
                if GUARDED && atomicLoad(&wg_poisoned) != 0u {
                    for (var j = 0u; j < KEY_SLICE; j++) {
                        let p_0 = wg_tile[(slice + j) * ROW_STRIDE + y];
                        let p_1 = wg_tile[(slice + j) * ROW_STRIDE + EDGE_Y + y];
                        let v_0 = wg_tile[VALUES_AT + j * 2u * EDGE_X + x];
                        let v_1 = wg_tile[VALUES_AT + j * 2u * EDGE_X + EDGE_X + x];
                        o_00 += outer_where(p_0, v_0);
                        o_01 += outer_where(p_0, v_1);
                        o_10 += outer_where(p_1, v_0);
                        o_11 += outer_where(p_1, v_1);
                    }
                } else {
                    for (var j = 0u; j < KEY_SLICE; j++) {
                        let p_0 = wg_tile[(slice + j) * ROW_STRIDE + y];
                        let p_1 = wg_tile[(slice + j) * ROW_STRIDE + EDGE_Y + y];
                        let v_0 = wg_tile[VALUES_AT + j * 2u * EDGE_X + x];
                        o_00 += outer(p_0, v_0);
                        o_10 += outer(p_1, v_0);
                        if VALUE_DIM > WIDTH / 2u {
                            let v_1 = wg_tile[VALUES_AT + j * 2u * EDGE_X + EDGE_X + x];
                            o_01 += outer(p_0, v_1);
                            o_11 += outer(p_1, v_1);
                        }
                    }
                }
            }
            out[4u * c] = o_00;
            out[4u * c + 1u] = o_01;
            out[4u * c + 2u] = o_10;
            out[4u * c + 3u] = o_11;
        }
    }

    workgroupBarrier();
    wg_tile[VALUES_AT + y * EDGE_X + x] = sum_0;
    wg_tile[VALUES_AT + (EDGE_Y + y) * EDGE_X + x] = sum_1;
    workgroupBarrier();
    for (var block = 0u; block < 2u; block++) {
        let row = select(row_0, row_1, block == 1u);
        let maximum = select(maximum_0, maximum_1, block == 1u);
        var total = vec4<f32>();
        for (var i = 0u; i < EDGE_X; i++) {
            total += wg_tile[VALUES_AT + (row / 4u) * EDGE_X + i];
        }
        // A sink is one more score, without a value. A total of zero means that the row looks at nothing; a NaN is kept.
        let drains = vec4(
            sink(head_of(tile, row)), sink(head_of(tile, row + 1u)), sink(head_of(tile, row + 2u)), sink(head_of(tile, row + 3u)));
        let top = max(maximum, drains);
        let shrink = power(maximum - top);
        total = total * shrink + weights(drains, top);
        let inverse = select(shrink / total, vec4<f32>(), total == vec4<f32>());
        for (var c = 0u; c < 2u * VALUE_CHUNKS; c++) {
            let d = c * (WIDTH / 2u) + 4u * x;
            let rows = out[c / 2u * 4u + 2u * block + c % 2u];
            store(tile, row, d, rows[0] * inverse.x);
            store(tile, row + 1u, d, rows[1] * inverse.y);
            store(tile, row + 2u, d, rows[2] * inverse.z);
            store(tile, row + 3u, d, rows[3] * inverse.w);
        }
        if x < 4u {
            store_sum(tile, row + x, natural(top[x]), total[x]);
        }
    }
}
