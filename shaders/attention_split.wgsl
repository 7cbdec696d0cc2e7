// attention_split: for each share of the keys o = softmax(mask(softcap(q · kᵀ × scale) − slope · distance + bias)) · v over
// that share alone, and lse = ln Σ exp over it, for attention_combine.
//
//   q, k, v, masks, lengths, pages and the rest are those of attention_fused
//   o    [splits, batch, heads, seq_q, VALUE_DIM] (o_plain, o_vectors), f32
//   lse  [splits, batch, heads, seq_q] (lse_dense), −inf where a row sees nothing of a share
//
// Share z of the n keys that a sequence has are those from z · c up to (z + 1) · c, c being ⌈n / splits⌉ rounded up to a
// multiple of 64; the last of many shares may be empty. How they are walked is in attention_shares.
//
// Keys come through workgroup memory, CHUNK dimensions at a time, so that lanes read whole rows together and then each its own.

const CHUNK: u32 = 32u; // host

const LANES: u32 = 64u;
// A vector more than a row of a chunk needs, so that lanes meet other banks.
const KEY_STRIDE: u32 = CHUNK / 4u + 1u;
const_assert CHUNK % 4u == 0u && KEYS == LANES;

var<workgroup> wg_k: array<vec4<f32>, KEYS * KEY_STRIDE>; // [key][dimension / 4] of a chunk

// What is staged before keys is, is there after the barrier in stage_keys.
fn before_keys() {
}

fn stage_keys(tile: Tile, first_key: u32, first_d: u32, lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < KEYS * (CHUNK / 4u); i += LANES) {
        let slot = i / (CHUNK / 4u);
        let part = i % (CHUNK / 4u);
        wg_k[slot * KEY_STRIDE + part] = k_part(tile, first_key + slot, first_d + 4u * part);
    }
    workgroupBarrier();
}

// Four dimensions of a key, d of a chunk.
fn key_four(tile: Tile, key: u32, first_d: u32, d: u32) -> vec4<f32> {
    return wg_k[key % KEYS * KEY_STRIDE + d / 4u];
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    attend_to_share(workgroup, workgroups, lane);
}
