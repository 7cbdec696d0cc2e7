// Cooperative matrices of 8 × 8: f16 factors, f32 sums. Alternative: matrices_16.
const EDGE: u32 = 8u;

alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sums = coop_mat8x8<f32, C>;
