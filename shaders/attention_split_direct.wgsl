// attention_split_direct: for each share of the keys o = softmax(mask(softcap(q · kᵀ × scale) − slope · distance + bias)) · v over
// that share alone, and lse = ln Σ exp over it, for attention_combine.
//
//   q, k, v, masks, lengths, pages and the rest are those of attention_fused
//   o    [splits, batch, heads, seq_q, VALUE_DIM] (o_plain, o_vectors), f32
//   lse  [splits, batch, heads, seq_q] (lse_dense), −inf where a row sees nothing of a share
//
// Share z of the n keys that a sequence has are those from z · c up to (z + 1) · c, c being ⌈n / splits⌉ rounded up to a
// multiple of 64; the last of many shares may be empty. How they are walked is in attention_shares.
//
// Keys are read where they lie, each element once, by the lane that has the key. That suits drivers that make lanes the elements
// of a host's vector registers, where an address that differs between lanes costs a load for each.

const LANES: u32 = 32u; // host

const CHUNK: u32 = 4u * HEAD_PARTS;

// What is staged before keys is there.
fn before_keys() {
    workgroupBarrier();
}

fn stage_keys(tile: Tile, first_key: u32, first_d: u32, lane: u32) {
}

// Four dimensions of a key.
fn key_four(tile: Tile, key: u32, first_d: u32, d: u32) -> vec4<f32> {
    return k_part(tile, key, first_d + d);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    attend_to_share(workgroup, workgroups, lane);
}
