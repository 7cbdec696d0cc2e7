// An additive mask, broadcast by strides of zero. Alternative: bias_none.
alias BiasElem = f32; // host

@group(0) @binding(11) var<storage, read> additive: array<BiasElem>;

fn bias(batch: u32, head: u32, i: u32, j: u32) -> f32 {
    let at = batch * params.bias_batch + head * params.bias_head + i * params.bias_query + j * params.bias_key;
    return f32(additive[at]);
}
