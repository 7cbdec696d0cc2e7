// An input of a type that WGSL has. Alternative: x_bf16.
alias XElem = f32; // host

@group(0) @binding(1) var<storage, read> x: array<XElem>;

fn x_at(at: u32) -> f32 {
    return f32(x[at]);
}
