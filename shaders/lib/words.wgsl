// Elements of 4, 2 or 1 bytes, kept 1, 2 or 4 to a word.
const PER_WORD: u32 = 1u; // host

const ELEMENT_BITS: u32 = 32u / PER_WORD;

// Element `at`, from the word that holds it.
fn element(word: u32, at: u32) -> u32 {
    return extractBits(word, at % PER_WORD * ELEMENT_BITS, ELEMENT_BITS);
}

// The word with element `at` in its place.
fn with_element(word: u32, at: u32, bits: u32) -> u32 {
    return insertBits(word, bits, at % PER_WORD * ELEMENT_BITS, ELEMENT_BITS);
}
