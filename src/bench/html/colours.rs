//! Whether everybody sees the page: contrast in both schemes as WCAG 2.2 computes it, and series that look unlike to those who see
//! two of the three primaries.

use plotters::prelude::RGBColor;

use super::chart::{COLOURS, Style};

const CSS: &str = include_str!("../../../templates/report.css");

/// Red, green and blue from 0 to 1, as the screen adds them up.
type Linear = [f64; 3];

fn linear(hex: &str) -> Linear {
    let hex = hex.trim_start_matches('#');
    [0, 2, 4].map(|at| {
        let part = f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0;
        if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
    })
}

/// From 1 to 21.
fn contrast(a: &str, b: &str) -> f64 {
    let luminance = |hex: &str| {
        let [red, green, blue] = linear(hex);
        0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05
    };
    let (a, b) = (luminance(a), luminance(b));
    a.max(b) / a.min(b)
}

/// How normal eyes, those without one kind of cones, and those without another see a colour (Machado, Oliveira and Fernandes, 2009).
const EYES: [[Linear; 3]; 4] = [
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
];

/// Distance in CIE L*a*b* as these eyes see it; 2 can just be told side by side.
fn distance(a: &str, b: &str, eyes: &[Linear; 3]) -> f64 {
    let lab = |hex: &str| {
        let colour = linear(hex);
        let seen = eyes.map(|row| row.iter().zip(colour).map(|(a, b)| a * b).sum::<f64>().clamp(0.0, 1.0));
        let [red, green, blue] = seen;
        let root = |t: f64| if t > 0.008_856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 };
        let x = root((0.412_456 * red + 0.357_576 * green + 0.180_438 * blue) / 0.950_47);
        let y = root(0.212_673 * red + 0.715_152 * green + 0.072_175 * blue);
        let z = root((0.019_334 * red + 0.119_192 * green + 0.950_304 * blue) / 1.088_83);
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    };
    lab(a).iter().zip(lab(b)).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// What the style sheet calls so in the light scheme, then in the dark one.
fn variable(name: &str) -> [String; 2] {
    let key = format!("--{name}: #");
    let values: Vec<_> = CSS.match_indices(&key).map(|(at, _)| &CSS[at + key.len() - 1..at + key.len() + 6]).collect();
    [values[0].to_owned(), values[1].to_owned()]
}

/// The colour that stands for another in the dark scheme, for areas and for lines alike.
fn counterpart(colour: &str) -> String {
    let of = |kind: &str| {
        let key = format!("[{kind}=\"{colour}\"] {{ {kind}: ");
        let at = CSS.find(&key).unwrap_or_else(|| panic!("the dark scheme lacks {kind} {colour}"));
        CSS[at + key.len()..at + key.len() + 7].to_owned()
    };
    assert_eq!(of("fill"), of("stroke"), "{colour}");
    of("fill")
}

/// The colours of series in either scheme.
fn series() -> [Vec<String>; 2] {
    let light: Vec<_> = COLOURS.map(hex).into();
    let dark = light.iter().map(|colour| counterpart(colour)).collect();
    [light, dark]
}

#[test]
fn contrasts_by_hand() {
    assert!((contrast("#000000", "#ffffff") - 21.0).abs() < 1e-9);
    assert!((contrast("#777777", "#ffffff") - 4.48).abs() < 0.005);
    assert!(distance("#ff0000", "#00ff00", &EYES[0]) > 100.0 && distance("#123456", "#123456", &EYES[2]) == 0.0);
}

#[test]
fn text_is_read_and_marks_are_seen_in_both_schemes() {
    for scheme in 0..2 {
        let grounds = ["page", "raised"].map(|name| variable(name)[scheme].clone());
        for ground in &grounds {
            for text in ["ink", "soft", "accent", "bad"] {
                let (colour, least) = (&variable(text)[scheme], 4.5);
                assert!(contrast(colour, ground) >= least, "{text} {colour} on {ground}: {}", contrast(colour, ground));
            }
        }
        for colour in &series()[scheme] {
            let found = contrast(colour, &grounds[0]);
            assert!(found >= 3.0, "{colour} on {}: {found}", grounds[0]);
        }
    }
    // Labels of axes, which the dark scheme draws in another colour.
    assert!(contrast("#333334", &variable("page")[0]) >= 4.5);
    let at = CSS.find("[fill=\"#333334\"] { fill: ").unwrap() + "[fill=\"#333334\"] { fill: ".len();
    assert!(contrast(&CSS[at..at + 7], &variable("page")[1]) >= 4.5);
}

#[test]
fn neighbours_are_told_apart_by_everybody() {
    for colours in series() {
        for eyes in &EYES {
            for (at, colour) in colours.iter().enumerate() {
                let next = &colours[(at + 1) % colours.len()];
                let found = distance(colour, next, eyes);
                assert!(found >= 15.0, "{colour} beside {next}: {found}");
            }
        }
    }
}

/// As many as a plot has at most.
#[test]
fn no_two_series_of_a_plot_have_the_same_mark() {
    let marks: Vec<_> = (0..10).map(|index| Style::of(index).mark_name()).collect();
    let mut different = marks.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), marks.len(), "{marks:?}");
}
