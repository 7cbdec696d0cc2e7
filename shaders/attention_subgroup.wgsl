// attention_subgroup: o = softmax(mask(softcap(q · kᵀ × scale) − slope · distance + bias)) · v in one pass over the keys; scores
// are never stored. Tensors, rules and edges are those of attention_fused.
//
// A workgroup owns QUERIES query rows of one head, or the few rows of HEADS_PER_TILE heads that read one key head, and walks the
// keys in tiles of KEYS. Four lanes of a subgroup are a team that owns four rows: of the scores a lane owns those of every fourth
// key, of o every fourth vector of dimensions. What a team must know of each other, maxima, sums and weights, goes through
// subgroup operations; queries, keys and values pass through workgroup memory, as they are. A team needs no more of a subgroup
// than that four lanes in a row are in it, so that every size from four on will do.
//
// Maximum, sum and o as in attention_fused.

const HEAD_DIM: u32 = 64u; // host
const VALUE_DIM: u32 = 64u; // host
const GUARDED: bool = true; // host
const HEADS_PER_TILE: u32 = 1u; // host
const QUERIES: u32 = 64u; // host
const KEYS: u32 = 32u; // host

const TEAM: u32 = 4u;
const TEAMS: u32 = QUERIES / 4u;
const LANES: u32 = TEAM * TEAMS;
const PARTS: u32 = 8u; // vectors of a query's or key's dimensions that are staged at a time
const STRIDE: u32 = PARTS + 1u; // one more, so that rows start in other banks
const KEYS_AT: u32 = QUERIES * STRIDE;
const WIDTH: u32 = 4u * TEAM; // vectors of a value's dimensions that are staged at a time
const CHUNKS: u32 = max((VALUE_DIM + 4u * WIDTH - 1u) / (4u * WIDTH), 1u);
const APART: u32 = TEAM * WIDTH; // vectors between the values of a team's next key
const_assert QUERIES % 4u == 0u && KEYS == 8u * TEAM;

// First queries and keys [row][dimension / 4], then, in the same place, values [key][dimension / 4].
var<workgroup> wg_tile: array<vec4<f32>, max((QUERIES + KEYS) * STRIDE, KEYS * WIDTH)>;
var<workgroup> wg_poisoned: atomic<u32>; // a value of the key tile is NaN or infinite
var<workgroup> wg_lanes: atomic<u32>; // of the subgroups that have numbered themselves

fn stage_scores(tile: Tile, first_key: u32, first_d: u32, lane: u32) {
    for (var i = lane; i < QUERIES * PARTS; i += LANES) {
        wg_tile[i / PARTS * STRIDE + i % PARTS] = q_part(tile, i / PARTS, first_d + i % PARTS * 4u);
    }
    for (var i = lane; i < KEYS * PARTS; i += LANES) {
        wg_tile[KEYS_AT + i / PARTS * STRIDE + i % PARTS] = k_part(tile, first_key + i / PARTS, first_d + i % PARTS * 4u);
    }
}

fn stage_values(tile: Tile, first_key: u32, first_d: u32, lane: u32) {
    for (var i = lane; i < KEYS * WIDTH; i += LANES) {
        let values = v_part(tile, first_key + i / WIDTH, first_d + i % WIDTH * 4u);
        if GUARDED && !all(finite(values)) {
            atomicStore(&wg_poisoned, 1u);
        }
        wg_tile[i] = values;
    }
}

// Four vectors of workgroup memory.
fn four(at: u32, stride: u32) -> mat4x4<f32> {
    return mat4x4<f32>(wg_tile[at], wg_tile[at + stride], wg_tile[at + 2u * stride], wg_tile[at + 3u * stride]);
}

fn greatest(scores: vec4<f32>) -> f32 {
    return max(max(scores.x, scores.y), max(scores.z, scores.w));
}

fn greatest_of_rows(scores: mat4x4<f32>) -> vec4<f32> {
    return vec4(greatest(scores[0]), greatest(scores[1]), greatest(scores[2]), greatest(scores[3]));
}

fn weighed(scores: mat4x4<f32>, maximum: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        weights(scores[0], vec4(maximum.x)),
        weights(scores[1], vec4(maximum.y)),
        weights(scores[2], vec4(maximum.z)),
        weights(scores[3], vec4(maximum.w)),
    );
}

// Another lane's matrix.
fn shuffled(rows: mat4x4<f32>, lane: u32) -> mat4x4<f32> {
    return mat4x4<f32>(
        subgroupShuffle(rows[0], lane),
        subgroupShuffle(rows[1], lane),
        subgroupShuffle(rows[2], lane),
        subgroupShuffle(rows[3], lane),
    );
}

// The greatest of a team's.
fn team_max(value: vec4<f32>) -> vec4<f32> {
    let pair = max(value, subgroupShuffleXor(value, 1u));
    return max(pair, subgroupShuffleXor(pair, 2u));
}

fn team_sum(value: vec4<f32>) -> vec4<f32> {
    let pair = value + subgroupShuffleXor(value, 1u);
    return pair + subgroupShuffleXor(pair, 2u);
}

// Values times weights of four keys. With `poisoned`, a weight of zero takes no part.
fn product(values: mat4x4<f32>, weights: mat4x4<f32>, poisoned: bool) -> mat4x4<f32> {
    if poisoned {
        return mat4x4<f32>(
            product_where(values, weights[0]),
            product_where(values, weights[1]),
            product_where(values, weights[2]),
            product_where(values, weights[3]),
        );
    }
    return values * weights;
}

fn product_where(values: mat4x4<f32>, weights: vec4<f32>) -> vec4<f32> {
    let near = select(values[0] * weights.x, vec4<f32>(), weights.x == 0.0) + select(values[1] * weights.y, vec4<f32>(), weights.y == 0.0);
    let far = select(values[2] * weights.z, vec4<f32>(), weights.z == 0.0) + select(values[3] * weights.w, vec4<f32>(), weights.w == 0.0);
    return near + far;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    // Nothing says which lanes of the workgroup are in a subgroup: subgroups number themselves.
    if lane == 0u {
        atomicStore(&wg_lanes, 0u);
    }
    workgroupBarrier();
    var before = 0u;
    if subgroup_lane == 0u {
        before = atomicAdd(&wg_lanes, subgroup_size);
    }
    let member = subgroupBroadcastFirst(before) + subgroup_lane;
    let tile = tile_at(workgroup.x + workgroup.y * workgroups.x);
    if tile.rows == 0u {
        return;
    }
    let x = member % TEAM; // keys and vectors x, x + 4, …
    let y = member / TEAM; // rows y, y + TEAMS, …
    let team = subgroup_lane - x; // its first lane

    var maximum = vec4(LOWEST); // of each row
    var sum = vec4<f32>(); // of each row, over the keys of this lane only
    var out: array<mat4x4<f32>, 4u * CHUNKS>; // vectors x, x + 4, … of each row
    let span = keys_of(tile);
    for (var first_key = span.x; first_key < span.y; first_key += KEYS) {
        if nothing_seen(tile, first_key, lane) {
            continue;
        }
        stage_rows(tile.kv_origin, tile.kv_start, first_key, tile.length, lane);
        // A column is a row, here and below.
        var s_0 = mat4x4<f32>(); // keys x, x + 4, x + 8, x + 12
        var s_1 = mat4x4<f32>(); // the next four
        for (var first_d = 0u; first_d < max(HEAD_DIM, 1u); first_d += 4u * PARTS) {
            workgroupBarrier();
            if GUARDED && lane == 0u {
                atomicStore(&wg_poisoned, 0u);
            }
            stage_scores(tile, first_key, first_d, lane);
            workgroupBarrier();
            for (var d = 0u; d < min(PARTS, (HEAD_DIM - first_d + 3u) / 4u); d++) {
                let rows = four(y * STRIDE + d, TEAMS * STRIDE);
                s_0 += transpose(four(KEYS_AT + x * STRIDE + d, TEAM * STRIDE)) * rows;
                s_1 += transpose(four(KEYS_AT + (x + 4u * TEAM) * STRIDE + d, TEAM * STRIDE)) * rows;
            }
        }
        s_0 *= params.scale;
        s_1 *= params.scale;
        if !is_whole(tile, first_key) {
            var each = array<vec4<f32>, 8>(s_0[0], s_0[1], s_0[2], s_0[3], s_1[0], s_1[1], s_1[2], s_1[3]);
            for (var i = 0u; i < rounds(tile, 8u); i++) {
                let row = y + i % 4u * TEAMS;
                let key = first_key + x + i / 4u * 4u * TEAM;
                let products = each[i];
                each[i] = vec4(
                    masked(tile, row, key, products.x),
                    masked(tile, row, key + TEAM, products.y),
                    masked(tile, row, key + 2u * TEAM, products.z),
                    masked(tile, row, key + 3u * TEAM, products.w),
                );
            }
            s_0 = mat4x4<f32>(each[0], each[1], each[2], each[3]);
            s_1 = mat4x4<f32>(each[4], each[5], each[6], each[7]);
        }
        let new_maximum = max(maximum, team_max(max(greatest_of_rows(s_0), greatest_of_rows(s_1))));
        let shrink = power(maximum - new_maximum);
        maximum = new_maximum;
        let p_0 = weighed(s_0, maximum);
        let p_1 = weighed(s_1, maximum);
        sum = sum * shrink + vec4(1.0) * p_0 + vec4(1.0) * p_1;

        for (var c = 0u; c < CHUNKS; c++) {
            workgroupBarrier();
            stage_values(tile, first_key, c * 4u * WIDTH, lane);
            workgroupBarrier();
            var o_0 = scaled(out[4u * c], shrink);
            var o_1 = scaled(out[4u * c + 1u], shrink);
            var o_2 = scaled(out[4u * c + 2u], shrink);
            var o_3 = scaled(out[4u * c + 3u], shrink);
            let poisoned = GUARDED && atomicLoad(&wg_poisoned) != 0u;
            for (var other = 0u; other < TEAM; other++) {
                let w_0 = shuffled(p_0, team + other);
                let w_1 = shuffled(p_1, team + other);
                let near = other * WIDTH + x;
                let far = near + 4u * TEAM * WIDTH;
                o_0 += product(four(near, APART), w_0, poisoned) + product(four(far, APART), w_1, poisoned);
                if VALUE_DIM > 4u * TEAM {
                    o_1 += product(four(near + TEAM, APART), w_0, poisoned) + product(four(far + TEAM, APART), w_1, poisoned);
                }
                if VALUE_DIM > 8u * TEAM {
                    o_2 += product(four(near + 2u * TEAM, APART), w_0, poisoned)
                        + product(four(far + 2u * TEAM, APART), w_1, poisoned);
                    o_3 += product(four(near + 3u * TEAM, APART), w_0, poisoned)
                        + product(four(far + 3u * TEAM, APART), w_1, poisoned);
                }
            }
            out[4u * c] = o_0;
            out[4u * c + 1u] = o_1;
            out[4u * c + 2u] = o_2;
            out[4u * c + 3u] = o_3;
        }
    }

    // A sink is one more score, without a value. A total of zero means that the row looks at nothing; a NaN is kept.
    let drains = vec4(
        sink(head_of(tile, y)),
        sink(head_of(tile, y + TEAMS)),
        sink(head_of(tile, y + 2u * TEAMS)),
        sink(head_of(tile, y + 3u * TEAMS)),
    );
    let top = max(maximum, drains);
    let shrink = power(maximum - top);
    let total = team_sum(sum) * shrink + weights(drains, top);
    let inverse = select(shrink / total, vec4<f32>(), total == vec4<f32>());
    for (var i = 0u; i < 4u * CHUNKS; i++) {
        let d = 4u * (x + i * TEAM);
        let rows = scaled(out[i], inverse);
        store(tile, y, d, rows[0]);
        store(tile, y + TEAMS, d, rows[1]);
        store(tile, y + 2u * TEAMS, d, rows[2]);
        store(tile, y + 3u * TEAMS, d, rows[3]);
    }
    store_sum(tile, y + x * TEAMS, natural(top[x]), total[x]);
}
