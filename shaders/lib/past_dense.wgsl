// The state that linear attention starts from. Alternative: past_none.
@group(0) @binding(12) var<storage, read> past: array<StateElem>;

fn past_state(at: u32) -> f32 {
    return f32(past[at]);
}
