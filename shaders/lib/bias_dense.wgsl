// An additive mask, broadcast by strides of zero. −inf masks out, whatever the score: it may be NaN;
// and so do keys past the bias's end. Alternative: bias_none.
alias BiasElem = f32; // host

@group(0) @binding(11) var<storage, read> additive: array<BiasElem>;

fn biased(score: f32, batch: u32, head: u32, i: u32, j: u32) -> f32 {
    if j >= params.bias_keys {
        return params.excluded;
    }
    let at = batch * params.bias_batch + head * params.bias_head + i * params.bias_query + j * params.bias_key;
    let added = f32(additive[at]);
    return select(score + added, added, is_excluded(added));
}
