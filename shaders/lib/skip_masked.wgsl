// A key tile is left out when no query of the tile may look at any of its keys. Alternative: skip_none.
var<workgroup> wg_any_seen: atomic<u32>;
var<workgroup> wg_skip: u32;

// The same for the whole workgroup, which must call it together.
fn nothing_seen(tile: Tile, first_key: u32, lane: u32) -> bool {
    if lane == 0u {
        atomicStore(&wg_any_seen, 0u);
    }
    workgroupBarrier();
    var seen = false;
    for (var i = lane; i < QUERIES * KEYS; i += LANES) {
        let row = i / KEYS;
        let key = first_key + i % KEYS;
        seen = seen || is_seen(tile, row, key);
    }
    if seen {
        atomicStore(&wg_any_seen, 1u);
    }
    workgroupBarrier();
    if lane == 0u {
        wg_skip = select(0u, 1u, atomicLoad(&wg_any_seen) == 0u);
    }
    return workgroupUniformLoad(&wg_skip) != 0u;
}

fn is_seen(tile: Tile, row: u32, key: u32) -> bool {
    let query = query_of(tile, row);
    let exists = row < tile.rows && query < tile.s.q_count && key < tile.length;
    return exists && allowed(tile.s, head_of(tile, row), query, key);
}
