// attention_lanes: o = softmax(mask(softcap(q · kᵀ × scale) − slope · distance + bias)) · v in one pass over the keys; scores are
// never stored. Tensors, rules and edges are those of attention_fused.
//
// A workgroup owns QUERIES query rows of one head, or the few rows of HEADS_PER_TILE heads that read one key head, and walks the
// keys four at a time, which it keeps in workgroup memory as they are. A lane owns ROWS whole rows, of q and of o: all lanes read
// the same number at the same time, and none waits for another within a tile. That suits drivers that make lanes the elements
// of a host's vector registers, where an address that differs between lanes costs a load for each, and one that is the same for
// all and known beforehand costs the least. Maximum, sum and o as in attention_fused.
//
// With GUARDED, a NaN or infinity in v reaches only the rows that look at its key: tiles that hold one take a path that looks at
// each weight.

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
const_assert QUERIES % ROWS == 0u && KEYS == 4u;

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

fn greatest(scores: vec4<f32>) -> f32 {
    return max(max(scores.x, scores.y), max(scores.z, scores.w));
}

// Weight times value, where the weight is not zero.
fn careful(weight: f32, value: vec4<f32>) -> vec4<f32> {
    return select(weight * value, vec4<f32>(), weight == 0.0);
}

// A row of the tile that a lane owns.
fn row_of(lane: u32, r: u32) -> u32 {
    return lane + r * LANES;
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
    var o: array<vec4<f32>, ROWS * VALUE_PARTS>; // [row][dimension / 4]
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
        // Scores, then weights, of the four keys.
        var p: array<vec4<f32>, ROWS>;
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
        var shrink: array<f32, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            var scores = p[r] * params.scale;
            if !whole {
                scores = masked_row(tile, row_of(lane, r), first_key, scores);
            }
            let before = maximum[r];
            maximum[r] = max(before, greatest(scores));
            shrink[r] = power(vec4(before - maximum[r])).x;
            p[r] = weights(scores, vec4(maximum[r]));
            sum[r] = sum[r] * shrink[r] + dot(p[r], vec4(1.0));
        }
        for (var d = 0u; d < VALUE_PARTS; d++) {
            let v_0 = wg_v[d];
            let v_1 = wg_v[VALUE_PARTS + d];
            let v_2 = wg_v[2u * VALUE_PARTS + d];
            let v_3 = wg_v[3u * VALUE_PARTS + d];
            for (var r = 0u; r < ROWS; r++) {
                let at = r * VALUE_PARTS + d;
                if poisoned {
                    // In the order of the other path, so that rows which see no NaN come out the same.
                    o[at] = o[at] * shrink[r]
                        + careful(p[r].x, v_0) + careful(p[r].y, v_1) + careful(p[r].z, v_2) + careful(p[r].w, v_3);
                } else {
                    o[at] = o[at] * shrink[r] + p[r].x * v_0 + p[r].y * v_1 + p[r].z * v_2 + p[r].w * v_3;
                }
            }
        }
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
