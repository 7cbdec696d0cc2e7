// Part `tile` of a batch element in parts of `height` rows. Alternative: parts_packed.
fn part(batch: u32, tile: u32, height: u32) -> Part {
    let first = tile * height;
    return Part(sequence_at(batch, first), first, min(height, params.seq_q - first));
}
