// gather_pages_each: y[batch, head, key] = x[table[batch, key / page_size], key % page_size, head].
//
//   x  [pages, page_size, kv_heads, width]; table  [batch, per_sequence]; y  [batch, kv_heads, per_sequence × page_size, width];
//   elements of any type, PER_WORD to a word; a page that does not exist counts as the last one
//
// A lane owns a word of y. Rows that do not exist (gather_lengths) are zero. Edges: what follows the elements in the last word
// is left alone.

const LANES: u32 = 256u;
const PER_WORD: u32 = 1u; // host
const BITS: u32 = 32u / PER_WORD;
const ELEMENT: u32 = 0xffffffffu >> (32u - BITS);

struct Params {
    count: u32,
    width: u32,
    keys: u32,
    heads: u32,
    page_size: u32,
    per_sequence: u32,
    pages: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

fn element(at: u32) -> u32 {
    let d = at % params.width;
    let key = at / params.width % params.keys;
    let head = at / (params.width * params.keys) % params.heads;
    let batch = at / (params.width * params.keys * params.heads);
    if key >= key_count(batch) {
        return 0u;
    }
    let page = min(table[batch * params.per_sequence + key / params.page_size], params.pages - 1u);
    let row = (page * params.page_size + key % params.page_size) * params.heads + head;
    let source = row * params.width + d;
    return (x[source / PER_WORD] >> (source % PER_WORD * BITS)) & ELEMENT;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = PER_WORD * ((workgroup.x + workgroup.y * workgroups.x) * LANES + lane);
    if first >= params.count {
        return;
    }
    var word = 0u;
    var kept = 0u;
    for (var i = 0u; i < PER_WORD; i++) {
        if first + i < params.count {
            word |= element(first + i) << (i * BITS);
        } else {
            kept |= ELEMENT << (i * BITS);
        }
    }
    if kept != 0u {
        word |= y[first / PER_WORD] & kept;
    }
    y[first / PER_WORD] = word;
}
