// Gates do not see the cell. Alternative: peepholes_dense.
fn peephole(at: u32) -> f32 {
    return 0.0;
}
