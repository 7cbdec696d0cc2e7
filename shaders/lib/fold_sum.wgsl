// Reducing to a sum. Alternative: fold_max.
alias Partial = f32;

fn start() -> Partial {
    return 0.0;
}

fn taken(x: f32) -> Partial {
    return x;
}

fn joined(a: Partial, b: Partial) -> Partial {
    return a + b;
}

fn finished(sum: Partial) -> f32 {
    return sum / params.divisor;
}
