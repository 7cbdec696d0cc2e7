// Attention over one share of the keys (shares) for few rows, in the way of attention_split and attention_split_direct, which say
// how a lane comes by a key.
//
// A workgroup owns one share for up to QUERIES rows, those of HEADS_PER_TILE heads that read one key head, and walks it in tiles of
// KEYS. For the scores a lane has a key; for the output it has four value dimensions of every TEAMS-th key. Queries and
// weights lie in workgroup memory with four rows to a vector. Maximum, sum and o as in attention_fused.
//
// Edges: rows, keys and dimensions past the end read as zero; keys past the end weigh nothing. With GUARDED, a NaN or infinity in
// v reaches only the rows that look at its key: where a tile leaves one in the output, the lane adds the tile up again and
// leaves out what weighs nothing.

const HEAD_DIM: u32 = 64u; // host
const VALUE_DIM: u32 = 64u; // host
const GUARDED: bool = true; // host
const HEADS_PER_TILE: u32 = 1u; // host
const QUERIES: u32 = 4u; // host
const KEYS: u32 = 64u; // host
const TEAM: u32 = 16u; // host

const BLOCKS: u32 = QUERIES / 4u; // of four rows
const TEAMS: u32 = LANES / TEAM;
const HEAD_PARTS: u32 = max((HEAD_DIM + 3u) / 4u, 1u);
const VALUE_ROUNDS: u32 = max((VALUE_DIM + 4u * TEAM - 1u) / (4u * TEAM), 1u);
// Keys whose maximum one lane takes.
const RUN: u32 = 8u;
const_assert QUERIES == 4u || QUERIES == 8u;
const_assert KEYS == UNIT && LANES <= KEYS && KEYS % (4u * TEAMS) == 0u && TEAM * TEAMS == LANES;

var<workgroup> wg_q: array<vec4<f32>, 4u * HEAD_PARTS * BLOCKS>; // [dimension][block of rows]
var<workgroup> wg_p: array<vec4<f32>, KEYS * BLOCKS>; // scores, then weights [key][block of rows]
var<workgroup> wg_top: array<vec4<f32>, KEYS / RUN * BLOCKS>; // maxima of runs of keys [run][block of rows]

fn stage_queries(tile: Tile, lane: u32) {
    for (var i = lane; i < HEAD_PARTS * BLOCKS; i += LANES) {
        let d = 4u * (i / BLOCKS);
        let row = 4u * (i % BLOCKS);
        let columns = transpose(mat4x4<f32>(
            q_part(tile, row, d), q_part(tile, row + 1u, d), q_part(tile, row + 2u, d), q_part(tile, row + 3u, d)));
        let at = d * BLOCKS + i % BLOCKS;
        wg_q[at] = columns[0];
        wg_q[at + BLOCKS] = columns[1];
        wg_q[at + 2u * BLOCKS] = columns[2];
        wg_q[at + 3u * BLOCKS] = columns[3];
    }
}

// Four dimensions of four rows, from dimension d, a multiple of four, on. A column is a dimension.
fn queries_at(d: u32, block: u32) -> mat4x4<f32> {
    let at = d * BLOCKS + block;
    return mat4x4<f32>(wg_q[at], wg_q[at + BLOCKS], wg_q[at + 2u * BLOCKS], wg_q[at + 3u * BLOCKS]);
}

fn masked_rows(tile: Tile, row: u32, key: u32, products: vec4<f32>) -> vec4<f32> {
    return vec4(
        masked(tile, row, key, products.x),
        masked(tile, row + 1u, key, products.y),
        masked(tile, row + 2u, key, products.z),
        masked(tile, row + 3u, key, products.w),
    );
}

fn all_finite(matrix: mat4x4<f32>) -> bool {
    return all(finite(matrix[0])) && all(finite(matrix[1])) && all(finite(matrix[2])) && all(finite(matrix[3]));
}

// Sum over the teams of what their lanes for the same dimensions have. The whole workgroup calls it together.
fn over_teams(mine: vec4<f32>, lane: u32) -> vec4<f32> {
    if TEAMS == 1u {
        return mine;
    }
    workgroupBarrier();
    wg_p[lane] = mine;
    workgroupBarrier();
    var total = vec4<f32>();
    for (var team = 0u; team < TEAMS; team++) {
        total += wg_p[team * TEAM + lane % TEAM];
    }
    return total;
}

fn store_block(tile: Tile, share: u32, first_row: u32, d: u32, lane: u32, rows: mat4x4<f32>) {
    let row_0 = over_teams(rows[0], lane);
    let row_1 = over_teams(rows[1], lane);
    let row_2 = over_teams(rows[2], lane);
    let row_3 = over_teams(rows[3], lane);
    if lane < TEAM {
        store_part(tile, share, first_row, d, row_0);
        store_part(tile, share, first_row + 1u, d, row_1);
        store_part(tile, share, first_row + 2u, d, row_2);
        store_part(tile, share, first_row + 3u, d, row_3);
    }
}

fn store_part(tile: Tile, share: u32, row: u32, d: u32, values: vec4<f32>) {
    if row < tile.rows {
        o_store(result_of(tile, share, row), d, values);
    }
}

// What a workgroup does.
fn attend_to_share(workgroup: vec3<u32>, workgroups: vec3<u32>, lane: u32) {
    let tile = tile_at(workgroup.x + workgroup.y * workgroups.x);
    if tile.rows == 0u {
        return;
    }
    let share = workgroup.z;
    let span = share_of(tile, share, workgroups.z);
    let begin = span.x;
    let end = span.y;
    stage_queries(tile, lane);

    let team = select(lane / TEAM, 0u, TEAMS == 1u);
    let first_part = lane % TEAM;
    var maximum_0 = vec4(LOWEST); // of each row
    var maximum_1 = vec4(LOWEST);
    var sum_0 = vec4<f32>(); // of each row, over the keys of this lane only
    var sum_1 = vec4<f32>();
    var out: array<mat4x4<f32>, VALUE_ROUNDS * BLOCKS>; // a column is a row of o
    for (var first_key = begin; first_key < end; first_key += KEYS) {
        if nothing_seen(tile, first_key, lane) {
            continue;
        }
        // Values of the tile before are read by rows that are staged.
        workgroupBarrier();
        stage_rows(tile.kv_origin, tile.kv_start, first_key, tile.length, lane);
        before_keys();
        let whole = is_whole(tile, first_key);
        for (var first_slot = 0u; first_slot < KEYS; first_slot += LANES) {
            let slot = first_slot + lane;
            let key = first_key + slot;
            var s_0 = vec4<f32>();
            var s_1 = vec4<f32>();
            for (var first_d = 0u; first_d < HEAD_DIM; first_d += CHUNK) {
                stage_keys(tile, first_key, first_d, lane);
                for (var d = 0u; d < min(CHUNK, HEAD_DIM - first_d); d += 4u) {
                    let four = key_four(tile, key, first_d, d);
                    s_0 += queries_at(first_d + d, 0u) * four;
                    if BLOCKS > 1u {
                        s_1 += queries_at(first_d + d, BLOCKS - 1u) * four;
                    }
                }
            }
            wg_p[slot * BLOCKS] = s_0 * params.scale;
            if BLOCKS > 1u {
                wg_p[slot * BLOCKS + BLOCKS - 1u] = s_1 * params.scale;
            }
            if !whole {
                for (var block = 0u; block < rounds(tile, BLOCKS); block++) {
                    let at = slot * BLOCKS + block;
                    wg_p[at] = masked_rows(tile, 4u * block, key, wg_p[at]);
                }
            }
        }
        workgroupBarrier();
        for (var i = lane; i < KEYS / RUN * BLOCKS; i += LANES) {
            var top = vec4(LOWEST);
            for (var j = 0u; j < RUN; j++) {
                top = max(top, wg_p[(i / BLOCKS * RUN + j) * BLOCKS + i % BLOCKS]);
            }
            wg_top[i] = top;
        }
        workgroupBarrier();
        let before_0 = maximum_0;
        let before_1 = maximum_1;
        for (var run = 0u; run < KEYS / RUN; run++) {
            maximum_0 = max(maximum_0, wg_top[run * BLOCKS]);
            if BLOCKS > 1u {
                maximum_1 = max(maximum_1, wg_top[run * BLOCKS + BLOCKS - 1u]);
            }
        }
        let shrink_0 = power(before_0 - maximum_0);
        let shrink_1 = power(before_1 - maximum_1);
        sum_0 *= shrink_0;
        sum_1 *= shrink_1;
        for (var slot = lane; slot < KEYS; slot += LANES) {
            let p_0 = weights(wg_p[slot * BLOCKS], maximum_0);
            wg_p[slot * BLOCKS] = p_0;
            sum_0 += p_0;
            if BLOCKS > 1u {
                let p_1 = weights(wg_p[slot * BLOCKS + BLOCKS - 1u], maximum_1);
                wg_p[slot * BLOCKS + BLOCKS - 1u] = p_1;
                sum_1 += p_1;
            }
        }
        workgroupBarrier();
        let count = min(KEYS, end - first_key);
        for (var c = 0u; c < VALUE_ROUNDS; c++) {
            let d = 4u * (first_part + c * TEAM);
            let old_0 = scaled(out[c * BLOCKS], shrink_0);
            let old_1 = scaled(out[c * BLOCKS + BLOCKS - 1u], shrink_1);
            var o_0 = old_0;
            var o_1 = old_1;
            // Four at a time, so that four loads are under way.
            for (var j = team; j < count; j += 4u * TEAMS) {
                let v_0 = v_part(tile, first_key + j, d);
                let v_1 = v_part(tile, first_key + j + TEAMS, d);
                let v_2 = v_part(tile, first_key + j + 2u * TEAMS, d);
                let v_3 = v_part(tile, first_key + j + 3u * TEAMS, d);
                let at = j * BLOCKS;
                let step = TEAMS * BLOCKS;
                o_0 += outer(wg_p[at], v_0) + outer(wg_p[at + step], v_1)
                    + (outer(wg_p[at + 2u * step], v_2) + outer(wg_p[at + 3u * step], v_3));
                if BLOCKS > 1u {
                    let second = at + BLOCKS - 1u;
                    o_1 += outer(wg_p[second], v_0) + outer(wg_p[second + step], v_1)
                        + (outer(wg_p[second + 2u * step], v_2) + outer(wg_p[second + 3u * step], v_3));
                }
            }
            if GUARDED && !(all_finite(o_0) && (BLOCKS == 1u || all_finite(o_1))) {
                o_0 = old_0;
                o_1 = old_1;
                for (var j = team; j < count; j += TEAMS) {
                    let values = v_part(tile, first_key + j, d);
                    o_0 += outer_where(wg_p[j * BLOCKS], values);
                    if BLOCKS > 1u {
                        o_1 += outer_where(wg_p[j * BLOCKS + BLOCKS - 1u], values);
                    }
                }
            }
            out[c * BLOCKS] = o_0;
            if BLOCKS > 1u {
                out[c * BLOCKS + BLOCKS - 1u] = o_1;
            }
        }
    }

    workgroupBarrier();
    wg_p[lane * BLOCKS] = sum_0;
    if BLOCKS > 1u {
        wg_p[lane * BLOCKS + BLOCKS - 1u] = sum_1;
    }
    workgroupBarrier();
    var total_0 = vec4<f32>();
    var total_1 = vec4<f32>();
    for (var i = 0u; i < LANES; i++) {
        total_0 += wg_p[i * BLOCKS];
        if BLOCKS > 1u {
            total_1 += wg_p[i * BLOCKS + BLOCKS - 1u];
        }
    }
    // A total of zero means that the row looks at nothing; a NaN is kept.
    let inverse_0 = select(1.0 / total_0, vec4<f32>(), total_0 == vec4<f32>());
    let inverse_1 = select(1.0 / total_1, vec4<f32>(), total_1 == vec4<f32>());
    for (var c = 0u; c < VALUE_ROUNDS; c++) {
        let d = 4u * (first_part + c * TEAM);
        store_block(tile, share, 0u, d, lane, scaled(out[c * BLOCKS], inverse_0));
        if BLOCKS > 1u {
            store_block(tile, share, 4u, d, lane, scaled(out[c * BLOCKS + BLOCKS - 1u], inverse_1));
        }
    }
    if lane < QUERIES {
        let total = select(total_0, total_1, lane >= 4u)[lane % 4u];
        let maximum = select(maximum_0, maximum_1, lane >= 4u)[lane % 4u];
        store_share_sum(tile, share, lane, maximum, total);
    }
}
