// A row in registers: up to eight fours a lane, FOURS of them in use. They have names because compilers keep arrays that a
// variable indexes in memory. The kernel says by taken and put what becomes of four elements.
// With held_fours or held_ones.
const FOURS: u32 = 8u; // host
const_assert FOURS >= 1u && FOURS <= 8u;

struct Held {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
    e: vec4<f32>,
    f: vec4<f32>,
    g: vec4<f32>,
    h: vec4<f32>,
}

// Reads a row, each element once.
fn held(start: u32, member: u32) -> Held {
    var row = Held();
    row.a = taken(start, member, 0u);
    if FOURS > 1u {
        row.b = taken(start, member, 1u);
    }
    if FOURS > 2u {
        row.c = taken(start, member, 2u);
    }
    if FOURS > 3u {
        row.d = taken(start, member, 3u);
    }
    if FOURS > 4u {
        row.e = taken(start, member, 4u);
    }
    if FOURS > 5u {
        row.f = taken(start, member, 5u);
    }
    if FOURS > 6u {
        row.g = taken(start, member, 6u);
    }
    if FOURS > 7u {
        row.h = taken(start, member, 7u);
    }
    return row;
}

fn held_put(row: Held, start: u32, member: u32, by: f32) {
    put(row.a, start, member, 0u, by);
    if FOURS > 1u {
        put(row.b, start, member, 1u, by);
    }
    if FOURS > 2u {
        put(row.c, start, member, 2u, by);
    }
    if FOURS > 3u {
        put(row.d, start, member, 3u, by);
    }
    if FOURS > 4u {
        put(row.e, start, member, 4u, by);
    }
    if FOURS > 5u {
        put(row.f, start, member, 5u, by);
    }
    if FOURS > 6u {
        put(row.g, start, member, 6u, by);
    }
    if FOURS > 7u {
        put(row.h, start, member, 7u, by);
    }
}

fn held_max(row: Held) -> f32 {
    var result = row.a;
    if FOURS > 1u {
        result = max(result, row.b);
    }
    if FOURS > 2u {
        result = max(result, row.c);
    }
    if FOURS > 3u {
        result = max(result, row.d);
    }
    if FOURS > 4u {
        result = max(result, row.e);
    }
    if FOURS > 5u {
        result = max(result, row.f);
    }
    if FOURS > 6u {
        result = max(result, row.g);
    }
    if FOURS > 7u {
        result = max(result, row.h);
    }
    return max(max(result.x, result.y), max(result.z, result.w));
}

// Fours that are not in use are zero.
fn held_sum(row: Held) -> f32 {
    return dot(((row.a + row.b) + (row.c + row.d)) + ((row.e + row.f) + (row.g + row.h)), vec4(1.0));
}

fn held_squares(row: Held) -> f32 {
    let first = (row.a * row.a + row.b * row.b) + (row.c * row.c + row.d * row.d);
    let second = (row.e * row.e + row.f * row.f) + (row.g * row.g + row.h * row.h);
    return dot(first + second, vec4(1.0));
}
