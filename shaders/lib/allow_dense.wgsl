// The band of allow_band, and a boolean mask of one byte per element, four to a word, broadcast by strides of zero;
// false for keys past the mask's end. Packed rows and keys count as they lie in the tensors. With band_shift.
// Alternatives: allow_all, allow_band.
@group(0) @binding(10) var<storage, read> mask: array<u32>;

fn allowed(s: Sequence, head: u32, i: u32, j: u32) -> bool {
    let row = s.q_begin + i;
    let key = s.k_begin + j;
    if key >= params.mask_keys {
        return false;
    }
    let distance = i32(j) - i32(i) - band_shift(s);
    let at = s.index * params.mask_batch + head * params.mask_head + row * params.mask_query + key * params.mask_key;
    let byte = (mask[at / 4u] >> (at % 4u * 8u)) & 0xffu;
    return byte != 0u && distance >= params.band_lower && distance <= params.band_upper;
}
