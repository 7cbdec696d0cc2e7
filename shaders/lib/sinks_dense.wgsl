// One more score for every row of a head, which has no value; −inf for none. Alternative: sinks_none.
@group(0) @binding(17) var<storage, read> sinks: array<f32>;

fn sink(head: u32) -> f32 {
    return sinks[head];
}
