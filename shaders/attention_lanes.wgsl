// attention_lanes: o = softmax(mask(softcap(q · kᵀ × scale) − slope · distance + bias)) · v in one pass over the keys; scores are
// never stored. Tensors, rules and edges are those of attention_fused.
//
// A workgroup owns QUERIES query rows of one head, or the few rows of HEADS_PER_TILE heads that read one key head, and walks the
// keys in tiles of KEYS, which it keeps in workgroup memory as they are. A lane owns two whole rows, of q and of o, and takes
// four keys at a time: all lanes read the same number at the same time, and none waits for another within a tile. That suits
// drivers that make lanes the elements of a host's vector registers, where an address that differs between lanes costs a load for
// each. Maximum, sum and o as in attention_fused.
//
// With GUARDED, a NaN or infinity in v reaches only the rows that look at its key: tiles that hold one take a path that looks at
// each weight.

const HEAD_DIM: u32 = 64u; // host
const VALUE_DIM: u32 = 64u; // host
const GUARDED: bool = true; // host
const HEADS_PER_TILE: u32 = 1u; // host
const QUERIES: u32 = 64u; // host
const KEYS: u32 = 16u; // host

const LANES: u32 = QUERIES / 2u;
const HEAD_PARTS: u32 = max((HEAD_DIM + 3u) / 4u, 1u);
const VALUE_PARTS: u32 = max((VALUE_DIM + 3u) / 4u, 1u);
const_assert QUERIES % 2u == 0u && KEYS % 4u == 0u;

var<workgroup> wg_k: array<vec4<f32>, KEYS * HEAD_PARTS>; // [key][dimension / 4]
var<workgroup> wg_v: array<vec4<f32>, KEYS * VALUE_PARTS>; // likewise
var<workgroup> wg_poisoned: atomic<u32>; // a value of the tile is NaN or infinite

fn stage(tile: Tile, first_key: u32, lane: u32) {
    for (var i = lane; i < KEYS * HEAD_PARTS; i += LANES) {
        wg_k[i] = k_part(tile, first_key + i / HEAD_PARTS, i % HEAD_PARTS * 4u);
    }
    for (var i = lane; i < KEYS * VALUE_PARTS; i += LANES) {
        let values = v_part(tile, first_key + i / VALUE_PARTS, i % VALUE_PARTS * 4u);
        if GUARDED && !all(finite(values)) {
            atomicStore(&wg_poisoned, 1u);
        }
        wg_v[i] = values;
    }
}

fn masked_row(tile: Tile, row: u32, key: u32, products: vec4<f32>) -> vec4<f32> {
    return vec4(
        masked(tile, row, key, products.x),
        masked(tile, row, key + 1u, products.y),
        masked(tile, row, key + 2u, products.z),
        masked(tile, row, key + 3u, products.w),
    );
}

fn greatest(scores: vec4<f32>) -> f32 {
    return max(max(scores.x, scores.y), max(scores.z, scores.w));
}

// Weight times value, where the weight is not zero.
fn careful(weight: f32, value: vec4<f32>) -> vec4<f32> {
    return select(weight * value, vec4<f32>(), weight == 0.0);
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
    let row_0 = lane;
    let row_1 = lane + LANES;
    var q_0: array<vec4<f32>, HEAD_PARTS>;
    var q_1: array<vec4<f32>, HEAD_PARTS>;
    for (var d = 0u; d < HEAD_PARTS; d++) {
        q_0[d] = q_part(tile, row_0, 4u * d);
        q_1[d] = q_part(tile, row_1, 4u * d);
    }
    var maximum = vec2(LOWEST);
    var sum = vec2<f32>();
    var o_0: array<vec4<f32>, VALUE_PARTS>;
    var o_1: array<vec4<f32>, VALUE_PARTS>;
    let span = keys_of(tile);
    for (var first_key = span.x; first_key < span.y; first_key += KEYS) {
        if nothing_seen(tile, first_key, lane) {
            continue;
        }
        stage_rows(tile.kv_origin, tile.kv_start, first_key, tile.length, lane);
        workgroupBarrier();
        // Not before all lanes have left the last tile, where they look at it.
        if GUARDED {
            if lane == 0u {
                atomicStore(&wg_poisoned, 0u);
            }
            workgroupBarrier();
        }
        stage(tile, first_key, lane);
        workgroupBarrier();
        let whole = is_whole(tile, first_key);
        let poisoned = GUARDED && atomicLoad(&wg_poisoned) != 0u;
        for (var j = 0u; j < KEYS; j += 4u) {
            var s_0 = vec4<f32>();
            var s_1 = vec4<f32>();
            let keys = j * HEAD_PARTS;
            for (var d = 0u; d < HEAD_PARTS; d++) {
                let k_0 = wg_k[keys + d];
                let k_1 = wg_k[keys + HEAD_PARTS + d];
                let k_2 = wg_k[keys + 2u * HEAD_PARTS + d];
                let k_3 = wg_k[keys + 3u * HEAD_PARTS + d];
                s_0 += vec4(dot(q_0[d], k_0), dot(q_0[d], k_1), dot(q_0[d], k_2), dot(q_0[d], k_3));
                s_1 += vec4(dot(q_1[d], k_0), dot(q_1[d], k_1), dot(q_1[d], k_2), dot(q_1[d], k_3));
            }
            s_0 *= params.scale;
            s_1 *= params.scale;
            if !whole {
                s_0 = masked_row(tile, row_0, first_key + j, s_0);
                s_1 = masked_row(tile, row_1, first_key + j, s_1);
            }
            let before = maximum;
            maximum = max(maximum, vec2(greatest(s_0), greatest(s_1)));
            let shrink = power(vec4(before - maximum, 0.0, 0.0)).xy;
            let p_0 = weights(s_0, vec4(maximum.x));
            let p_1 = weights(s_1, vec4(maximum.y));
            sum = sum * shrink + vec2(dot(p_0, vec4(1.0)), dot(p_1, vec4(1.0)));
            let values = j * VALUE_PARTS;
            if poisoned {
                for (var d = 0u; d < VALUE_PARTS; d++) {
                    let v_0 = wg_v[values + d];
                    let v_1 = wg_v[values + VALUE_PARTS + d];
                    let v_2 = wg_v[values + 2u * VALUE_PARTS + d];
                    let v_3 = wg_v[values + 3u * VALUE_PARTS + d];
                    // In the order of the other path, so that rows which see no NaN come out the same.
                    o_0[d] = o_0[d] * shrink.x
                        + careful(p_0.x, v_0) + careful(p_0.y, v_1) + careful(p_0.z, v_2) + careful(p_0.w, v_3);
                    o_1[d] = o_1[d] * shrink.y
                        + careful(p_1.x, v_0) + careful(p_1.y, v_1) + careful(p_1.z, v_2) + careful(p_1.w, v_3);
                }
            } else {
                for (var d = 0u; d < VALUE_PARTS; d++) {
                    let v_0 = wg_v[values + d];
                    let v_1 = wg_v[values + VALUE_PARTS + d];
                    let v_2 = wg_v[values + 2u * VALUE_PARTS + d];
                    let v_3 = wg_v[values + 3u * VALUE_PARTS + d];
                    o_0[d] = o_0[d] * shrink.x + p_0.x * v_0 + p_0.y * v_1 + p_0.z * v_2 + p_0.w * v_3;
                    o_1[d] = o_1[d] * shrink.y + p_1.x * v_0 + p_1.y * v_1 + p_1.z * v_2 + p_1.w * v_3;
                }
            }
        }
    }

    // A sink is one more score, without a value. A total of zero means that the row looks at nothing; a NaN is kept.
    let drains = vec2(sink(head_of(tile, row_0)), sink(head_of(tile, row_1)));
    let top = max(maximum, drains);
    let shrink = power(vec4(maximum - top, 0.0, 0.0)).xy;
    let total = sum * shrink + weights(vec4(drains, 0.0, 0.0), vec4(top, 0.0, 0.0)).xy;
    let inverse = select(shrink / total, vec2<f32>(), total == vec2<f32>());
    for (var d = 0u; d < VALUE_PARTS; d++) {
        store(tile, row_0, 4u * d, o_0[d] * inverse.x);
        store(tile, row_1, 4u * d, o_1[d] * inverse.y);
    }
    store_sum(tile, row_0, natural(top.x), total.x);
    store_sum(tile, row_1, natural(top.y), total.y);
}
