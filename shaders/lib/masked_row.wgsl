// What mask_scores and masked_softmax are told, the row of scores that an invocation works on, and what its mask makes of a score: softcap, then slopes, bias and mask; −inf
// where there is no query or no key, or not of this batch element's sequence. With queries_*, keys_*, allow_*, slopes_*, bias_*
// and softcap_*.
struct Params {
    count: u32, // of scores
    heads: u32,
    seq_q: u32,
    seq_kv: u32,
    band_lower: i32,
    band_upper: i32,
    fill: f32,
    excluded: f32,
    softcap: f32,
    band_follows: u32,
    mask_keys: u32,
    bias_keys: u32,
    mask_batch: u32,
    mask_head: u32,
    mask_query: u32,
    mask_key: u32,
    bias_batch: u32,
    bias_head: u32,
    bias_query: u32,
    bias_key: u32,
    position: i32,
    slope_sequence: u32,
    sequences: u32,
    own_batch: u32, // not zero where batch elements have the rows of one sequence each
}

@group(0) @binding(0) var<uniform> params: Params;

struct Own {
    s: Sequence,
    head: u32,
    i: u32,
    keys: u32, // those that exist; none where the row is no query of this batch element
    start: u32,
}

var<private> own: Own;

// Rows count batch, head and query together.
fn take_row(row: u32) {
    let query = row % params.seq_q;
    let batch = row / params.seq_q / params.heads;
    let s = sequence_at(batch, query);
    let i = query - s.q_begin;
    let is_other = params.own_batch != 0u && s.index != batch;
    let keys = select(s.k_count, 0u, i >= s.q_count || is_other);
    own = Own(s, row / params.seq_q % params.heads, i, keys, row * params.seq_kv);
}

fn masked(score: f32, at: u32) -> f32 {
    let j = at - own.start - own.s.k_begin; // a key before the first wraps around
    if j >= own.keys {
        return params.excluded;
    }
    let sum = biased(sloped(capped(score), own.s, own.head, own.i, j), own.s, own.head, own.i, j);
    return select(params.fill, sum, allowed(own.s, own.head, own.i, j));
}
