// An additive mask, broadcast by strides of zero. −inf masks out, whatever the score: it may be NaN;
// and so do keys past the bias's end. Packed rows and keys count as they lie in the tensors. Alternative: bias_none.
alias BiasElem = f32; // host

@group(0) @binding(11) var<storage, read> additive: array<BiasElem>;

fn biased(score: f32, s: Sequence, head: u32, i: u32, j: u32) -> f32 {
    let row = s.q_begin + i;
    let key = s.k_begin + j;
    if key >= params.bias_keys {
        return params.excluded;
    }
    let at = s.index * params.bias_batch + head * params.bias_head + row * params.bias_query + key * params.bias_key;
    let added = f32(additive[at]);
    return select(score + added, added, is_excluded(added));
}
