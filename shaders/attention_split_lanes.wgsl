// attention_split_lanes: for each share of the keys o = softmax(mask(softcap(q · kᵀ × scale) − slope · distance + bias)) · v over
// that share alone, and lse = ln Σ exp over it, for attention_combine. Tensors and shares are those of attention_split_direct.
//
// A workgroup owns one share for up to QUERIES rows, those of HEADS_PER_TILE heads that read one key head. A lane owns a whole row, of
// q and of o, and all lanes read the same key and value at the same time, where they lie. That suits drivers that make lanes the
// elements of a host's vector registers and load what is the same for all of them once. Maximum, sum and o as in attention_fused.
//
// Edges: rows and dimensions past the end read as zero; keys past the end weigh nothing. With GUARDED, a NaN or infinity in v
// reaches only the rows that look at its key.

const HEAD_DIM: u32 = 64u; // host
const VALUE_DIM: u32 = 64u; // host
const GUARDED: bool = true; // host
const HEADS_PER_TILE: u32 = 1u; // host
const QUERIES: u32 = 8u; // host
const KEYS: u32 = 4u; // host

const LANES: u32 = QUERIES;
const HEAD_PARTS: u32 = (HEAD_DIM + 3u) / 4u;
const VALUE_PARTS: u32 = (VALUE_DIM + 3u) / 4u;
const_assert KEYS == 4u && UNIT % KEYS == 0u;

// What a value adds to a row.
fn weighted(weight: f32, value: vec4<f32>) -> vec4<f32> {
    if GUARDED {
        return weight * select(value, vec4<f32>(), weight == 0.0);
    }
    return weight * value;
}

// Row of a key, or of the last one where there are no more.
fn key_row(tile: Tile, key: u32) -> u32 {
    return kv_row(tile.kv_origin, tile.kv_start, min(key, tile.length - 1u));
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) row: u32,
) {
    let tile = tile_at(workgroup.x + workgroup.y * workgroups.x);
    if tile.rows == 0u {
        return;
    }
    var q: array<vec4<f32>, max(HEAD_PARTS, 1u)>; // [dimension / 4]
    for (var d = 0u; d < HEAD_PARTS; d++) {
        q[d] = q_part(tile, row, 4u * d);
    }
    var maximum = LOWEST;
    var sum = 0.0;
    var o: array<vec4<f32>, max(VALUE_PARTS, 1u)>; // [dimension / 4]
    let share = workgroup.z;
    let span = share_of(tile, share, workgroups.z);
    for (var first_key = span.x; first_key < span.y; first_key += KEYS) {
        if nothing_seen(tile, first_key, row) {
            continue;
        }
        let row_0 = key_row(tile, first_key);
        let row_1 = key_row(tile, first_key + 1u);
        let row_2 = key_row(tile, first_key + 2u);
        let row_3 = key_row(tile, first_key + 3u);
        // Scores, then weights, of the four keys.
        var p = vec4<f32>();
        for (var d = 0u; d < HEAD_PARTS; d++) {
            let x = q[d];
            p += vec4(
                dot(x, k_four(row_0, 4u * d)),
                dot(x, k_four(row_1, 4u * d)),
                dot(x, k_four(row_2, 4u * d)),
                dot(x, k_four(row_3, 4u * d)),
            );
        }
        p *= params.scale;
        if !is_whole(tile, first_key) {
            p = masked_row(tile, row, first_key, p);
        }
        let before = maximum;
        maximum = max(before, max(max(p.x, p.y), max(p.z, p.w)));
        let shrink = power(vec4(before - maximum)).x;
        p = weights(p, vec4(maximum));
        sum = sum * shrink + dot(p, vec4(1.0));
        for (var d = 0u; d < VALUE_PARTS; d++) {
            o[d] = o[d] * shrink
                + weighted(p.x, v_four(row_0, 4u * d))
                + weighted(p.y, v_four(row_1, 4u * d))
                + weighted(p.z, v_four(row_2, 4u * d))
                + weighted(p.w, v_four(row_3, 4u * d));
        }
    }
    // A total of zero means that the row looks at nothing; a NaN is kept.
    let inverse = select(1.0 / sum, 0.0, sum == 0.0);
    for (var d = 0u; d < VALUE_PARTS; d++) {
        if row < tile.rows {
            o_store(result_of(tile, share, row), 4u * d, o[d] * inverse);
        }
    }
    store_share_sum(tile, share, row, maximum, sum);
}
