// The largest element under a window; NaN when there is one. Alternative: pool_average.
struct Pool {
    largest: f32,
    taken: bool,
}

fn pool_add(pool: Pool, value: f32) -> Pool {
    let larger = value > pool.largest && !is_nan(pool.largest);
    let wins = !pool.taken || is_nan(value) || larger;
    return Pool(select(pool.largest, value, wins), true);
}

fn pool_result(pool: Pool, counted: u32) -> f32 {
    return pool.largest;
}
