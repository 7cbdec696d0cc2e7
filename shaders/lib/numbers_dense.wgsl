// Each element has a number of its own. Alternative: numbers_position.
@group(0) @binding(3) var<storage, read> numbers: array<u32>;

fn number(position: u32) -> u32 {
    return numbers[position];
}
