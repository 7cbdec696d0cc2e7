// Where an element lies in images [batch, height, width, channels]; size is height, width, channels.
// Alternative: image_nchw.
const CHANNELS_LAST: bool = true;

struct Place {
    batch: u32,
    y: u32,
    x: u32,
    channel: u32,
}

fn image_index(at: Place, size: vec3<u32>) -> u32 {
    return ((at.batch * size.x + at.y) * size.y + at.x) * size.z + at.channel;
}

fn image_place(index: u32, size: vec3<u32>) -> Place {
    let pixel = index / size.z;
    return Place(pixel / size.y / size.x, pixel / size.y % size.x, pixel % size.y, index % size.z);
}
