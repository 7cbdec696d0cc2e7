// A held row (held_row) in which the kernel has changed every element by a number of the row.
fn held_changed(row: Held, member: u32, by: f32) -> Held {
    var result = Held();
    result.a = changed(row.a, member, 0u, by);
    if FOURS > 1u {
        result.b = changed(row.b, member, 1u, by);
    }
    if FOURS > 2u {
        result.c = changed(row.c, member, 2u, by);
    }
    if FOURS > 3u {
        result.d = changed(row.d, member, 3u, by);
    }
    if FOURS > 4u {
        result.e = changed(row.e, member, 4u, by);
    }
    if FOURS > 5u {
        result.f = changed(row.f, member, 5u, by);
    }
    if FOURS > 6u {
        result.g = changed(row.g, member, 6u, by);
    }
    if FOURS > 7u {
        result.h = changed(row.h, member, 7u, by);
    }
    return result;
}
