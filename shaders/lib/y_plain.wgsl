// An output of a type that WGSL has. Alternative: y_bf16.
alias YElem = f32; // host

@group(0) @binding(2) var<storage, read_write> y: array<YElem>;

// `at` is even.
fn y_store(at: u32, first: f32, second: f32) {
    y[at] = YElem(first);
    if at + 1u < params.count {
        y[at + 1u] = YElem(second);
    }
}
