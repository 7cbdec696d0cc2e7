// Where in x an element of y comes from, when y has the axes of x in another order.
fn source(at: u32) -> u32 {
    var rest = at;
    var place = rest % params.size_5 * params.stride_5;
    rest /= params.size_5;
    place += rest % params.size_4 * params.stride_4;
    rest /= params.size_4;
    place += rest % params.size_3 * params.stride_3;
    rest /= params.size_3;
    place += rest % params.size_2 * params.stride_2;
    rest /= params.size_2;
    place += rest % params.size_1 * params.stride_1;
    return place + rest / params.size_1 * params.stride_0;
}
