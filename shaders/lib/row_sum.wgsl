// Largest score of a row and the sum of the weights that it leaves. The lanes of a workgroup walk the row together, LANES
// elements at a time, each with a running maximum and sum (Milakov and Gimelshein, arXiv:1805.02867); one reduction joins them.
// The kernel says by score(at) what the scores are. With excluded, sinks_* and reduce_workgroup.
struct RowSum {
    maximum: f32,
    sum: f32,
}

// exp(score − maximum), and zero for −inf whatever the maximum is.
fn weight(score: f32, maximum: f32) -> f32 {
    return select(exp(score - maximum), 0.0, is_excluded(score));
}

// Every invocation must call it, and gets the result. The sum is zero where every score is −inf and there is no sink.
fn row_sum(lane: u32, start: u32, length: u32, head: u32) -> RowSum {
    var lane_maximum = max(LOWEST, sink(head));
    var lane_sum = 0.0;
    for (var i = lane; i < length; i += LANES) {
        let value = score(start + i);
        let maximum = max(lane_maximum, value);
        lane_sum = lane_sum * exp(lane_maximum - maximum) + weight(value, maximum);
        lane_maximum = maximum;
    }
    let maximum = reduce_max(lane, lane_maximum);
    let sum = reduce_sum(lane, lane_sum * exp(lane_maximum - maximum));
    return RowSum(maximum, sum + weight(sink(head), maximum));
}
