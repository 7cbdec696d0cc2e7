// A recurrence starts from these: h, then c, [2, batch, hidden]. Alternative: lstm_state_zero.
alias ElemS = f32; // host

@group(0) @binding(11) var<storage, read> first_state: array<ElemS>;

fn initial_h(at: u32) -> f32 {
    return f32(first_state[at]);
}

fn initial_c(at: u32) -> f32 {
    return f32(first_state[params.batch * HIDDEN + at]);
}
