// attention_lanes: o = softmax(mask(softcap(q · kᵀ × scale) − slope · distance + bias)) · v in one pass over the keys; scores are
// never stored. Tensors, rules and edges are those of attention_fused.
//
// A workgroup owns QUERIES query rows of one head, or the few rows of HEADS_PER_TILE heads that read one key head, and walks the
// keys four at a time, which it keeps in workgroup memory as they are. A lane owns ROWS whole rows, of q and of o: all lanes read
// the same number at the same time, and none waits for another within a tile. That suits drivers that make lanes the elements
// of a host's vector registers, where an address that differs between lanes costs a load for each, and one that is the same for
// all and known beforehand costs the least.
//
// Such drivers let the lanes of a workgroup take turns from barrier to barrier, vector by vector. Barriers between the scores, the
// first half of the values and the second keep what is between two of them as short as what a host's core remembers of decoded
// instructions, so that the next vector runs it from there. The next keys are staged behind the second barrier, values behind the
// third, as nobody reads the last ones any more.
//
// Maximum, sum and o as in attention_fused, but the maximum only follows where a score is RISE above it: what it is in the end
// divides out.
//
// With GUARDED, some rows do not look at some keys, and a NaN or infinity in v reaches only those that look at its key: tiles that
// hold one take a path that looks at each weight.

const HEAD_DIM: u32 = 64u; // host
const VALUE_DIM: u32 = 64u; // host
const GUARDED: bool = true; // host
const HEADS_PER_TILE: u32 = 1u; // host
const QUERIES: u32 = 128u; // host
const KEYS: u32 = 4u; // host
const ROWS: u32 = 4u; // host

const LANES: u32 = QUERIES / ROWS;
const HEAD_PARTS: u32 = max((HEAD_DIM + 3u) / 4u, 1u);
const VALUE_PARTS: u32 = max((VALUE_DIM + 3u) / 4u, 1u);
const HALF: u32 = VALUE_PARTS / 2u;
const RISE: f32 = 8.0; // weights reach at most 2 ^ 8, or e ^ 8
const_assert QUERIES % ROWS == 0u && KEYS == 4u;

alias Weights = array<vec4<f32>, ROWS>; // [row][key]
alias Output = array<vec4<f32>, ROWS * VALUE_PARTS>; // [row][dimension / 4]

var<workgroup> wg_k: array<vec4<f32>, KEYS * HEAD_PARTS>; // [key][dimension / 4]
var<workgroup> wg_v: array<vec4<f32>, KEYS * VALUE_PARTS>; // likewise
var<workgroup> wg_poisoned: atomic<u32>; // one more than the first key of the last tile with a value that is NaN or infinite

fn stage_keys(tile: Tile, first_key: u32, lane: u32) {
    for (var i = lane; i < KEYS * HEAD_PARTS; i += LANES) {
        wg_k[i] = k_part(tile, first_key + i / HEAD_PARTS, i % HEAD_PARTS * 4u);
    }
}

fn stage_values(tile: Tile, first_key: u32, lane: u32) {
    for (var i = lane; i < KEYS * VALUE_PARTS; i += LANES) {
        let values = v_part(tile, first_key + i / VALUE_PARTS, i % VALUE_PARTS * 4u);
        if GUARDED && !all(finite(values)) {
            atomicStore(&wg_poisoned, first_key + 1u);
        }
        wg_v[i] = values;
    }
}

// The first key tile from `start` on that is looked at, or one past the end. The same for the whole workgroup.
fn next_seen(tile: Tile, start: u32, end: u32, lane: u32) -> u32 {
    var first_key = start;
    while first_key < end && nothing_seen(tile, first_key, lane) {
        first_key += KEYS;
    }
    return first_key;
}

fn greatest(scores: vec4<f32>) -> f32 {
    return max(max(scores.x, scores.y), max(scores.z, scores.w));
}

// Adds the values of the tile by their weights, in some of the dimensions. A poisoned value counts where its weight is not zero; both
// paths add in one order, so that rows which see none come out the same.
fn add_values(tile: Tile, o: ptr<function, Output>, p: ptr<function, Weights>, first: u32, end: u32, poisoned: bool) {
    if poisoned {
        for (var key = 0u; key < rounds(tile, KEYS); key++) {
            for (var d = first; d < end; d++) {
                let value = wg_v[key * VALUE_PARTS + d];
                for (var r = 0u; r < ROWS; r++) {
                    let weight = (*p)[r][key];
                    (*o)[r * VALUE_PARTS + d] += select(weight * value, vec4<f32>(), weight == 0.0);
                }
            }
        }
    } else {
        for (var d = first; d < end; d++) {
            let v_0 = wg_v[d];
            let v_1 = wg_v[VALUE_PARTS + d];
            let v_2 = wg_v[2u * VALUE_PARTS + d];
            let v_3 = wg_v[3u * VALUE_PARTS + d];
            for (var r = 0u; r < ROWS; r++) {
                let w = (*p)[r];
                let at = r * VALUE_PARTS + d;
                (*o)[at] = (*o)[at] + w.x * v_0 + w.y * v_1 + w.z * v_2 + w.w * v_3;
            }
        }
    }
}

// A row of the tile that a lane owns: neighbours own neighbouring rows, so that a vector's lanes look at much the same keys.
fn row_of(lane: u32, r: u32) -> u32 {
    return lane * ROWS + r;
}

// Keys that some row of the lane may look at.
fn keys_of_lane(tile: Tile, lane: u32) -> vec2<u32> {
    if HEADS_PER_TILE > 1u {
        return keys_of(tile);
    }
    return keys_between(tile, tile.first_row + row_of(lane, 0u), tile.first_row + row_of(lane, ROWS));
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let tile = tile_at(workgroup.x + workgroup.y * workgroups.x);
    if tile.rows == 0u {
        return;
    }
    // This is id.x. LLVM works out what only takes integers anew behind each barrier, and a lane's number takes it divisions.
    let lane = u32(sqrt(f32(id.x * id.x)) + 0.5);
    var q: array<vec4<f32>, ROWS * HEAD_PARTS>; // [row][dimension / 4]
    for (var r = 0u; r < ROWS; r++) {
        for (var d = 0u; d < HEAD_PARTS; d++) {
            q[r * HEAD_PARTS + d] = q_part(tile, row_of(lane, r), 4u * d);
        }
    }
    var maximum: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        maximum[r] = LOWEST;
    }
    var sum: array<f32, ROWS>;
    var o: Output;
    let span = keys_of(tile);
    let own = keys_of_lane(tile, lane);
    var first_key = next_seen(tile, span.x, span.y, lane);
    if GUARDED && lane == 0u {
        atomicStore(&wg_poisoned, 0u);
    }
    stage_rows(tile.kv_origin, tile.kv_start, first_key, tile.length, lane);
    workgroupBarrier();
    if first_key < span.y {
        stage_keys(tile, first_key, lane);
    }
    workgroupBarrier();
    while first_key < span.y {
        stage_values(tile, first_key, lane);
        // Scores, then weights, of the four keys.
        var p: Weights;
        // Where no lane of a vector looks, the host jumps.
        let looks = !GUARDED || (first_key >= own.x && first_key < own.y);
        if looks {
            for (var d = 0u; d < HEAD_PARTS; d++) {
                let k_0 = wg_k[d];
                let k_1 = wg_k[HEAD_PARTS + d];
                let k_2 = wg_k[2u * HEAD_PARTS + d];
                let k_3 = wg_k[3u * HEAD_PARTS + d];
                for (var r = 0u; r < ROWS; r++) {
                    let x = q[r * HEAD_PARTS + d];
                    p[r] += vec4(dot(x, k_0), dot(x, k_1), dot(x, k_2), dot(x, k_3));
                }
            }
            let whole = is_whole(tile, first_key);
            for (var r = 0u; r < ROWS; r++) {
                p[r] *= params.scale;
                if !whole {
                    p[r] = masked_row(tile, row_of(lane, r), first_key, p[r]);
                }
            }
        }
        workgroupBarrier();

        if looks {
            var top: array<f32, ROWS>;
            var rises = false;
            for (var r = 0u; r < ROWS; r++) {
                top[r] = greatest(p[r]);
                rises = rises || top[r] > maximum[r] + RISE;
            }
            if rises {
                var shrink: array<f32, ROWS>;
                for (var r = 0u; r < ROWS; r++) {
                    let before = maximum[r];
                    maximum[r] = max(before, top[r]);
                    shrink[r] = power(vec4(before - maximum[r])).x;
                    sum[r] *= shrink[r];
                }
                for (var d = 0u; d < VALUE_PARTS; d++) {
                    for (var r = 0u; r < ROWS; r++) {
                        o[r * VALUE_PARTS + d] *= shrink[r];
                    }
                }
            }
            for (var r = 0u; r < ROWS; r++) {
                p[r] = weights(p[r], vec4(maximum[r]));
                sum[r] += dot(p[r], vec4(1.0));
            }
        }
        let poisoned = GUARDED && atomicLoad(&wg_poisoned) == first_key + 1u;
        let next = next_seen(tile, first_key + KEYS, span.y, lane);
        stage_rows(tile.kv_origin, tile.kv_start, next, tile.length, lane);
        if looks {
            add_values(tile, &o, &p, 0u, HALF, poisoned);
        }
        workgroupBarrier();

        if next < span.y {
            stage_keys(tile, next, lane);
        }
        if looks {
            add_values(tile, &o, &p, HALF, VALUE_PARTS, poisoned);
        }
        workgroupBarrier();
        first_key = next;
    }

    for (var r = 0u; r < ROWS; r++) {
        let row = row_of(lane, r);
        // A sink is one more score, without a value. A total of zero means that the row looks at nothing; a NaN is kept.
        let drain = sink(head_of(tile, row));
        let top = max(maximum[r], drain);
        let shrink = power(vec4(maximum[r] - top)).x;
        let total = sum[r] * shrink + weights(vec4(drain), vec4(top)).x;
        let inverse = select(shrink / total, 0.0, total == 0.0);
        for (var d = 0u; d < VALUE_PARTS; d++) {
            store(tile, row, 4u * d, o[r * VALUE_PARTS + d] * inverse);
        }
        store_sum(tile, row, natural(top), total);
    }
}
