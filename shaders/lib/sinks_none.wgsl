// No score takes part that has no key. Alternative: sinks_dense.
fn sink(head: u32) -> f32 {
    return params.excluded;
}
