// A score is bent towards ±softcap. Alternative: softcap_none.
fn capped(score: f32) -> f32 {
    let x = score / params.softcap;
    // Past ±10 tanh is ±1 in f32, and drivers that compute it from two exponentials overflow. NaN passes the clamp by hand.
    let bent = params.softcap * tanh(clamp(x, -10.0, 10.0));
    return select(bent, score, is_nan(score));
}
