// Where an element lies in images [batch, channels, height, width]; size is height, width, channels.
// Alternative: image_nhwc.
const CHANNELS_LAST: bool = false;

struct Place {
    batch: u32,
    y: u32,
    x: u32,
    channel: u32,
}

fn image_index(at: Place, size: vec3<u32>) -> u32 {
    return ((at.batch * size.z + at.channel) * size.x + at.y) * size.y + at.x;
}

fn image_place(index: u32, size: vec3<u32>) -> Place {
    let plane = index / (size.x * size.y);
    return Place(plane / size.z, index / size.y % size.x, index % size.y, plane % size.z);
}
