// attention_coop: o = softmax(mask(softcap(q · kᵀ × scale) − slope · distance + bias)) · v in one pass over the keys, both
// products on cooperative matrices that multiply f16 and add up in f32 (matrices_*).
//
//   Tensors and rules as in attention_fused; what is not f16 in q, k and v is rounded to it.
//
// A workgroup of SUBGROUPS subgroups owns QUERIES query rows of one head, or the few rows of HEADS_PER_TILE heads that read
// one key head, a subgroup ROWS matrices of them, and walks the keys in tiles of KEYS. Queries and sums of the output stay in
// matrices. Elements of a matrix can be told apart in workgroup memory only: scores go there in f32, become weights
// there, and come back in f16.
//
// Weights are 2^SHIFT times exp(score − m), where m is the row's maximum or at most RISE below it: f16 then holds weights down
// to 2^-31 of the largest. Only when a maximum rises above m by more does the output pass through workgroup memory and
// shrink (FlashAttention 4 does as much); the sum of a row is that of the weights as they are rounded.
//
// Edges: rows, keys and dimensions past the end read as zero, and keys past the end weigh nothing. A value that is NaN or
// infinite reaches only the rows that look at its key: its tile holds zero in its place, and the path that shrinks adds it. Key
// tiles that the band, the lengths or a boolean mask (skip_masked) hide from all rows are not loaded, and tiles
// of which every row sees every key are not masked.
//
// A subgroup is as large as the device likes: LANES are enough for SUBGROUPS of the largest, and where there are more they
// repeat what the first do.

const HEAD_DIM: u32 = 64u; // host
const VALUE_DIM: u32 = 64u; // host
const HEADS_PER_TILE: u32 = 1u; // host
const RULED: bool = true; // host
const ROUNDS: bool = false; // host
const ROWS: u32 = 1u; // host
const KEYS: u32 = 32u; // host
const LANES: u32 = 128u; // host

const LOWEST: f32 = -3.4028234e38;
const LOG2E: f32 = 1.442695;
const SHIFT: f32 = 7.0;
const RISE: f32 = 5.5451775; // 8 ln 2
const SUBGROUPS: u32 = 4u;
const QUERIES: u32 = SUBGROUPS * ROWS * EDGE;
const DEEP: u32 = (HEAD_DIM + EDGE - 1u) / EDGE; // matrices along a query
const WIDE: u32 = (VALUE_DIM + EDGE - 1u) / EDGE; // and along a value
const ACROSS: u32 = KEYS / EDGE; // and along the keys of a tile
const SPLIT: u32 = min(max(LANES / QUERIES, 1u), KEYS / 4u); // lanes that share a row of scores
const SHARE: u32 = KEYS / 4u / SPLIT; // vectors of each

// Vectors from one row to the next, apart from multiples of the banks.
const TILE_PITCH: u32 = (max(DEEP, WIDE) * EDGE + 8u) / 4u;
const SCORE_PITCH: u32 = (KEYS + 4u) / 4u;
const WEIGHT_PITCH: u32 = (KEYS + 8u) / 4u;

var<workgroup> wg_tile: array<vec4<f16>, KEYS * TILE_PITCH>; // keys, then values: [key][dimension / 4]
var<workgroup> wg_scores: array<vec4<f32>, QUERIES * SCORE_PITCH>; // [row][key / 4], and the output: [row][dimension / 4]
var<workgroup> wg_weights: array<vec4<f16>, QUERIES * WEIGHT_PITCH>; // [row][key / 4], and queries: [row][dimension / 4]
var<workgroup> wg_tops: array<f32, QUERIES * SPLIT>; // of a tile's scores: [row][share]
var<workgroup> wg_maxima: array<f32, QUERIES * SPLIT>; // m, the same for all shares of a row
var<workgroup> wg_sums: array<f32, QUERIES * SPLIT>; // of each share's weights
var<workgroup> wg_factors: array<f32, QUERIES>; // by which a row of the output shrinks
var<workgroup> wg_touched: u32; // the output must pass through workgroup memory
var<workgroup> wg_poisoned: u32; // the values hold a NaN or infinity

fn masked(tile: Tile, row: u32, key: u32, product: f32) -> f32 {
    let head = head_of(tile, row);
    let i = query_of(tile, row);
    if row >= tile.rows || key >= tile.length || i >= tile.s.q_count {
        return params.excluded;
    }
    let score = biased(sloped(capped(product * params.scale), tile.s, head, i, key), tile.s, head, i, key);
    return select(params.fill, score, allowed(tile.s, head, i, key));
}

// Whether every row of the tile looks at all of these keys, and nothing but scale and softcap happens to a score.
fn all_seen(tile: Tile, first_key: u32, shift: i32) -> bool {
    let first = i32(tile.first_row) + shift;
    let key = i32(first_key);
    let rows = HEADS_PER_TILE == 1u && tile.rows == QUERIES && tile.first_row + QUERIES <= tile.s.q_count;
    let below = key - first - i32(QUERIES) + 1 >= params.band_lower;
    let above = key + i32(KEYS) - 1 - first <= params.band_upper;
    return !RULED && rows && first_key + KEYS <= tile.length && below && above;
}

// EDGE rows of keys, or of values, for each matrix of the tile.
fn stage_keys(tile: Tile, first_key: u32, lane: u32) {
    const EACH = DEEP * EDGE / 4u;
    for (var i = lane; i < KEYS * EACH; i += LANES) {
        wg_tile[i / EACH * TILE_PITCH + i % EACH] = vec4<f16>(k_part(tile, first_key + i / EACH, 4u * (i % EACH)));
    }
}

fn stage_values(tile: Tile, first_key: u32, lane: u32) {
    const EACH = WIDE * EDGE / 4u;
    for (var i = lane; i < KEYS * EACH; i += LANES) {
        let four = vec4<f16>(v_part(tile, first_key + i / EACH, 4u * (i % EACH)));
        let usable = finite(vec4<f32>(four));
        if !all(usable) {
            wg_poisoned = 1u;
            wg_touched = 1u;
        }
        wg_tile[i / EACH * TILE_PITCH + i % EACH] = select(vec4<f16>(), four, usable);
    }
}

// What stage_values left out, for the rows that look at it: one row, four dimensions.
fn poison(tile: Tile, first_key: u32, first_d: u32, row: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    for (var j = 0u; j < KEYS; j++) {
        let key = first_key + j;
        if key >= tile.length || is_excluded(masked(tile, row, key, 0.0)) {
            continue;
        }
        let at = kv_row(tile.kv_origin, tile.kv_start, key);
        let weight = f32(wg_weights[row * WEIGHT_PITCH + j / 4u][j % 4u]);
        for (var i = 0u; i < 4u; i++) {
            if first_d + i >= VALUE_DIM {
                break;
            }
            let value = v_at(at, first_d + i);
            if !is_finite(f32(f16(value))) {
                // The weight of a key that is looked at is above zero, even where f16 has none so small.
                sum[i] += select(value, weight * value, is_finite(value));
            }
        }
    }
    return sum;
}

// Scores as the products left them become scores under the rule; keeps the largest of each share.
fn rule(tile: Tile, first_key: u32, seen: bool, lane: u32) {
    for (var at = lane; at < QUERIES * SPLIT; at += LANES) {
        let row = at / SPLIT;
        var top = LOWEST;
        for (var x = at % SPLIT * SHARE; x < (at % SPLIT + 1u) * SHARE; x++) {
            let products = wg_scores[row * SCORE_PITCH + x];
            var scores: vec4<f32>;
            if seen {
                let s = products * params.scale;
                scores = vec4(capped(s.x), capped(s.y), capped(s.z), capped(s.w));
            } else {
                let key = first_key + 4u * x;
                scores = vec4(
                    masked(tile, row, key, products.x),
                    masked(tile, row, key + 1u, products.y),
                    masked(tile, row, key + 2u, products.z),
                    masked(tile, row, key + 3u, products.w),
                );
            }
            wg_scores[row * SCORE_PITCH + x] = scores;
            top = max(top, max(max(scores.x, scores.y), max(scores.z, scores.w)));
        }
        wg_tops[at] = top;
    }
}

// Scores become weights, and zero for −inf whatever the maximum is.
fn weigh(lane: u32) {
    for (var at = lane; at < QUERIES * SPLIT; at += LANES) {
        let row = at / SPLIT;
        let old = wg_maxima[at];
        var top = old;
        for (var part = 0u; part < SPLIT; part++) {
            top = max(top, wg_tops[row * SPLIT + part]);
        }
        let maximum = select(top, old, top <= old + RISE);
        let factor = exp(old - maximum);
        var sum = vec4<f32>();
        for (var x = at % SPLIT * SHARE; x < (at % SPLIT + 1u) * SHARE; x++) {
            let s = wg_scores[row * SCORE_PITCH + x];
            let excluded = vec4(is_excluded(s.x), is_excluded(s.y), is_excluded(s.z), is_excluded(s.w));
            let weights = vec4<f16>(select(exp2((s - maximum) * LOG2E + SHIFT), vec4<f32>(), excluded));
            wg_weights[row * WEIGHT_PITCH + x] = weights;
            sum += vec4<f32>(weights);
        }
        let before = wg_sums[at];
        if maximum != old && before != 0.0 {
            wg_touched = 1u;
        }
        wg_sums[at] = before * select(factor, 1.0, before == 0.0) + sum.x + sum.y + sum.z + sum.w;
        wg_maxima[at] = maximum;
        if at % SPLIT == 0u {
            wg_factors[row] = select(factor, 1.0, maximum == old);
        }
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let at = workgroup.x + workgroup.y * workgroups.x;
    // A return that naga sees to be the same for all; a tile without rows looks at nothing and writes nothing.
    if at / params.parts / (params.heads / HEADS_PER_TILE) >= params.batch {
        return;
    }
    let tile = tile_at(at);
    let own = subgroup % SUBGROUPS * ROWS * EDGE; // first row of the subgroup

    let shift = band_shift(tile.s);
    let span = keys_of(tile);

    for (var i = lane; i < QUERIES * SPLIT; i += LANES) {
        wg_maxima[i] = LOWEST;
        wg_sums[i] = 0.0;
    }
    // Queries, as many dimensions at a time as a tile has keys.
    var queries: array<Left, ROWS * DEEP>;
    for (var first = 0u; first < DEEP; first += ACROSS) {
        for (var i = lane; i < QUERIES * KEYS / 4u; i += LANES) {
            let row = i / (KEYS / 4u);
            let four = vec4<f16>(q_part(tile, row, first * EDGE + 4u * (i % (KEYS / 4u))));
            wg_weights[row * WEIGHT_PITCH + i % (KEYS / 4u)] = four;
        }
        workgroupBarrier();
        for (var d = first; d < min(first + ACROSS, DEEP); d++) {
            for (var r = 0u; r < ROWS; r++) {
                queries[r * DEEP + d] =
                    coopLoadT<Left>(&wg_weights[(own + r * EDGE) * WEIGHT_PITCH + (d - first) * EDGE / 4u], WEIGHT_PITCH);
            }
        }
        workgroupBarrier();
    }

    var out: array<Sums, ROWS * WIDE>;
    for (var first_key = span.x; first_key < span.y; first_key += KEYS) {
        if nothing_seen(tile, first_key, lane) {
            continue;
        }
        stage_rows(tile.kv_origin, tile.kv_start, first_key, tile.length, lane);
        workgroupBarrier();
        stage_keys(tile, first_key, lane);
        if lane == 0u {
            wg_touched = 0u;
            wg_poisoned = 0u;
        }
        workgroupBarrier();
        // Matrices of keys that some row may look at.
        let across = (min(span.y - first_key, KEYS) + EDGE - 1u) / EDGE;
        for (var x = 0u; x < across; x++) {
            var sums: array<Sums, ROWS>;
            for (var d = 0u; d < DEEP; d++) {
                let keys = coopLoad<Right>(&wg_tile[x * EDGE * TILE_PITCH + d * EDGE / 4u], TILE_PITCH);
                for (var r = 0u; r < ROWS; r++) {
                    sums[r] = coopMultiplyAdd(queries[r * DEEP + d], keys, sums[r]);
                }
            }
            for (var r = 0u; r < ROWS; r++) {
                coopStoreT(sums[r], &wg_scores[(own + r * EDGE) * SCORE_PITCH + x * EDGE / 4u], SCORE_PITCH);
            }
        }
        workgroupBarrier();
        stage_values(tile, first_key, lane);
        rule(tile, first_key, all_seen(tile, first_key, shift), lane);
        if SPLIT > 1u {
            workgroupBarrier();
        }
        weigh(lane);
        if workgroupUniformLoad(&wg_touched) != 0u {
            for (var first = 0u; first < WIDE; first += ACROSS) {
                for (var c = first; c < min(first + ACROSS, WIDE); c++) {
                    for (var r = 0u; r < ROWS; r++) {
                        coopStoreT(
                            out[r * WIDE + c], &wg_scores[(own + r * EDGE) * SCORE_PITCH + (c - first) * EDGE / 4u], SCORE_PITCH);
                    }
                }
                workgroupBarrier();
                for (var i = lane; i < QUERIES * KEYS / 4u; i += LANES) {
                    let row = i / (KEYS / 4u);
                    let d = first * EDGE + 4u * (i % (KEYS / 4u));
                    if d < WIDE * EDGE {
                        let place = row * SCORE_PITCH + i % (KEYS / 4u);
                        var four = wg_scores[place] * wg_factors[row];
                        if wg_poisoned != 0u {
                            four += poison(tile, first_key, d, row);
                        }
                        wg_scores[place] = four;
                    }
                }
                workgroupBarrier();
                for (var c = first; c < min(first + ACROSS, WIDE); c++) {
                    for (var r = 0u; r < ROWS; r++) {
                        out[r * WIDE + c] =
                            coopLoadT<Sums>(&wg_scores[(own + r * EDGE) * SCORE_PITCH + (c - first) * EDGE / 4u], SCORE_PITCH);
                    }
                }
                workgroupBarrier();
            }
        }
        for (var x = 0u; x < across; x++) {
            var weights: array<Left, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                weights[r] = coopLoadT<Left>(&wg_weights[(own + r * EDGE) * WEIGHT_PITCH + x * EDGE / 4u], WEIGHT_PITCH);
            }
            for (var c = 0u; c < WIDE; c++) {
                let values = coopLoadT<Right>(&wg_tile[x * EDGE * TILE_PITCH + c * EDGE / 4u], TILE_PITCH);
                for (var r = 0u; r < ROWS; r++) {
                    out[r * WIDE + c] = coopMultiplyAdd(weights[r], values, out[r * WIDE + c]);
                }
            }
        }
    }

    workgroupBarrier();
    for (var row = lane; row < QUERIES; row += LANES) {
        var total = 0.0;
        for (var part = 0u; part < SPLIT; part++) {
            total += wg_sums[row * SPLIT + part];
        }
        // A sink is one more score, without a value. A total of zero means that the row looks at nothing; a NaN is kept.
        let maximum = wg_maxima[row * SPLIT];
        let drain = sink(head_of(tile, row));
        let top = max(maximum, drain);
        let factor = exp(maximum - top);
        total = total * exp2(-SHIFT) * factor + select(exp(drain - top), 0.0, is_excluded(drain));
        wg_factors[row] = select(exp2(-SHIFT) * factor / total, 0.0, total == 0.0);
        store_sum(tile, row, top, total);
    }
    for (var first = 0u; first < WIDE; first += ACROSS) {
        for (var c = first; c < min(first + ACROSS, WIDE); c++) {
            for (var r = 0u; r < ROWS; r++) {
                coopStoreT(out[r * WIDE + c], &wg_scores[(own + r * EDGE) * SCORE_PITCH + (c - first) * EDGE / 4u], SCORE_PITCH);
            }
        }
        workgroupBarrier();
        for (var i = lane; i < QUERIES * KEYS / 4u; i += LANES) {
            let row = i / (KEYS / 4u);
            let d = first * EDGE + 4u * (i % (KEYS / 4u));
            if d < VALUE_DIM {
                store(tile, row, d, wg_scores[row * SCORE_PITCH + i % (KEYS / 4u)] * wg_factors[row]);
            }
        }
        workgroupBarrier();
    }
}
