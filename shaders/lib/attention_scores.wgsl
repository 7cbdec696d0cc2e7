// Scores of the techniques of attention_fused, and the weights that come of them, in a base that suits the rule.

// Scores are in units of log2: the scale has that factor, and nothing else comes between product and softmax.
const BASE_2: bool = true; // host
// The rule is a band and lengths at most, so that scores of tiles inside of them are products times the scale.
const BANDED: bool = true; // host

const LN_2: f32 = 0.6931472;
const LOWEST: f32 = -3.4028234e38;

fn power(x: vec4<f32>) -> vec4<f32> {
    if BASE_2 {
        return exp2(x);
    }
    return exp(x);
}

// `count`, so that compilers do not see it: a loop of so many rounds stays a loop. Drivers that copy its body, with the rule in
// it, take seconds to compile a kernel.
fn rounds(tile: Tile, count: u32) -> u32 {
    return min(count, tile.rows * count);
}

// A score in units of the natural logarithm.
fn natural(score: f32) -> f32 {
    return select(score, score * LN_2, BASE_2);
}

// Whether all rows and keys of a tile exist and look at each other. The same for the whole workgroup.
fn is_whole(tile: Tile, first_key: u32) -> bool {
    if !BANDED {
        return false;
    }
    let rows = select(tile.rows, params.rows_per_head, HEADS_PER_TILE > 1u);
    let shift = band_shift(tile.s);
    let nearest = i32(first_key) - i32(tile.first_row + rows - 1u) - shift;
    let farthest = i32(first_key + KEYS - 1u) - i32(tile.first_row) - shift;
    let exist = first_key + KEYS <= tile.length && tile.first_row + rows <= tile.s.q_count;
    return exist && nearest >= params.band_lower && farthest <= params.band_upper;
}

// What becomes of a scaled product: the score that takes part in the softmax, −inf where none does.
fn masked(tile: Tile, row: u32, key: u32, product: f32) -> f32 {
    let head = head_of(tile, row);
    let i = query_of(tile, row);
    if key >= tile.length || i >= tile.s.q_count {
        return params.excluded;
    }
    let score = biased(sloped(capped(product), tile.s, head, i, key), tile.s, head, i, key);
    return select(params.fill, score, allowed(tile.s, head, i, key));
}

// The same of four keys in a row.
fn masked_row(tile: Tile, row: u32, key: u32, products: vec4<f32>) -> vec4<f32> {
    return vec4(
        masked(tile, row, key, products.x),
        masked(tile, row, key + 1u, products.y),
        masked(tile, row, key + 2u, products.z),
        masked(tile, row, key + 3u, products.w),
    );
}

// The base to the power of score − maximum, and zero for −inf whatever the maximum is.
fn weights(scores: vec4<f32>, maximum: vec4<f32>) -> vec4<f32> {
    let excluded = vec4(is_excluded(scores.x), is_excluded(scores.y), is_excluded(scores.z), is_excluded(scores.w));
    return select(power(scores - maximum), vec4<f32>(), excluded);
}
