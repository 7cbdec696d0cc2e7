// Row of a cache [batch, kv_heads, capacity]. Alternative: cache_paged.
fn cache_row(batch: u32, head: u32, position: u32) -> u32 {
    return (batch * params.kv_heads + head) * params.capacity + position;
}
