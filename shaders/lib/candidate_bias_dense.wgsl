// A candidate's recurrent part has a bias of its own, which the reset gate scales too. Alternative:
// candidate_bias_none.
alias ElemB = f32; // host

@group(0) @binding(12) var<storage, read> candidate_biases: array<ElemB>;

fn candidate_bias(unit: u32) -> f32 {
    return f32(candidate_biases[unit]);
}
