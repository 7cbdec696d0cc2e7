// The sum of the elements under a window, divided by the number of taps that count. Alternative: pool_max.
struct Pool {
    sum: f32,
}

fn pool_add(pool: Pool, value: f32) -> Pool {
    return Pool(pool.sum + value);
}

fn pool_result(pool: Pool, counted: u32) -> f32 {
    return pool.sum / f32(counted);
}
