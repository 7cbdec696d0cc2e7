// The band of allow_band, and a boolean mask of one byte per element, four to a word, broadcast by strides of zero;
// false for keys past the mask's end.
// Alternatives: allow_all, allow_band.
@group(0) @binding(10) var<storage, read> mask: array<u32>;

fn allowed(batch: u32, head: u32, i: u32, j: u32) -> bool {
    if j >= params.mask_keys {
        return false;
    }
    let distance = i32(j) - i32(i) - band_shift(batch);
    let at = batch * params.mask_batch + head * params.mask_head + i * params.mask_query + j * params.mask_key;
    let byte = (mask[at / 4u] >> (at % 4u * 8u)) & 0xffu;
    return byte != 0u && distance >= params.band_lower && distance <= params.band_upper;
}
