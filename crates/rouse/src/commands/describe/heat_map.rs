//! A picture of a snapshot's memory: one cell for each page, mapping by mapping.
//!
//! ```text
//!  title, totals, legend
//!  name of the file      r--p  ..........######....
//!  address, size         r-xp  ######.....##
//!                        rw-p  ###
//! ```
//! Pages run from left to right, [`COLUMNS`] in a row. Long stretches without contents of their own
//! (reserved address space, code that is never used) are folded into one line, or nothing
//! else could be seen.

use std::fmt::Write;

use crate::client::shapes::{MappingView, MemoryView};
use crate::output::quantity;

/// Pages in a row: 512 KiB.
const COLUMNS: u64 = 128;
const CELL: u64 = 7;
/// Height of a row.
const ROW: u64 = 9;
const LEFT: u64 = 330;
const RIGHT: u64 = 24;
const WIDTH: u64 = LEFT + COLUMNS * CELL + RIGHT;
/// Rows of one class and without contents of their own that are drawn before the rest is folded.
const ROWS_UNFOLDED: u64 = 6;
/// Height of the two lines beside a group.
const LABEL: u64 = 30;

/// Classes, their colours and what is said of them in the legend.
const CLASSES: [(&str, &str, &str); 6] = [
    ("written", "#c8372d", "written by calls"),
    ("read", "#f2a33a", "read by calls"),
    ("cold", "#4878a8", "in the pool"),
    ("parent", "#8064a8", "in the parent's pool"),
    ("file", "#a8c8a4", "a file's page"),
    ("zero", "#e4e4e0", "nothing"),
];

/// Mappings that follow one another and show the same file.
struct Group<'a> {
    name: &'a str,
    mappings: Vec<&'a MappingView>,
}

/// The picture, as SVG.
pub fn svg(function: &str, memory: &MemoryView) -> String {
    let mut canvas = Canvas::default();
    canvas.header(function, memory);
    for group in groups(&memory.mappings) {
        canvas.group(&group);
    }
    canvas.finish(function)
}

fn groups(mappings: &[MappingView]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for mapping in mappings {
        match groups.last_mut() {
            Some(group) if group.name == mapping.name => group.mappings.push(mapping),
            _ => groups.push(Group {
                name: &mapping.name,
                mappings: vec![mapping],
            }),
        }
    }
    groups
}

#[derive(Default)]
struct Canvas {
    out: String,
    /// Where the next thing goes.
    y: u64,
}

/// Writing to a string cannot fail.
macro_rules! draw {
    ($canvas:expr, $($text:tt)*) => {{
        let _ = writeln!($canvas.out, $($text)*);
    }};
}

impl Canvas {
    fn header(&mut self, function: &str, memory: &MemoryView) {
        let pages: u64 = memory.classes.iter().map(|class| class.pages).sum();
        let with_contents: u64 = memory
            .classes
            .iter()
            .filter(|class| class.class != "zero")
            .map(|class| class.pages)
            .sum();
        let size = |pages: u64| quantity::bytes(pages * memory.page_size);
        draw!(
            self,
            r#"<text x="24" y="38" class="title">Memory of {}</text>"#,
            escaped(function)
        );
        draw!(
            self,
            r#"<text x="24" y="58" class="small">{} mapped in {} mappings, {} with contents; one cell is a page of {}, a row {}</text>"#,
            size(pages),
            memory.mappings.len(),
            size(with_contents),
            quantity::bytes(memory.page_size),
            size(COLUMNS)
        );
        self.totals(memory, with_contents.max(1));
        self.y = 170;
    }

    /// One bar of all pages with contents, and the legend, which tells the numbers.
    fn totals(&mut self, memory: &MemoryView, with_contents: u64) {
        let full = WIDTH - 24 - RIGHT;
        let mut done = 0;
        let mut column = 24;
        for (class, colour, meaning) in CLASSES {
            let Some(total) = memory.classes.iter().find(|total| total.class == class) else {
                continue;
            };
            if class != "zero" {
                let (from, to) = (
                    full * done / with_contents,
                    full * (done + total.pages) / with_contents,
                );
                done += total.pages;
                draw!(
                    self,
                    r#"<rect x="{}" y="72" width="{}" height="20" fill="{colour}"><title>{class}: {} pages</title></rect>"#,
                    24 + from,
                    to - from,
                    total.pages
                );
            }
            draw!(
                self,
                r#"<rect x="{column}" y="108" width="12" height="12" fill="{colour}"/><text x="{}" y="118" class="name">{class}</text><text x="{}" y="133" class="small">{meaning}</text><text x="{}" y="147" class="small">{} pages, {}</text>"#,
                column + 18,
                column + 18,
                column + 18,
                total.pages,
                quantity::bytes(total.bytes)
            );
            column += full / CLASSES.len() as u64;
        }
    }

    fn group(&mut self, group: &Group<'_>) {
        let (Some(first), Some(last)) = (group.mappings.first(), group.mappings.last()) else {
            return;
        };
        let top = self.y;
        draw!(
            self,
            r##"<line x1="24" y1="{top}" x2="{}" y2="{top}" stroke="#d8d8d4"/>"##,
            WIDTH - RIGHT
        );
        let bytes: u64 = group.mappings.iter().map(|m| m.end - m.start).sum();
        draw!(
            self,
            r#"<text x="24" y="{}" class="name">{}<title>{}</title></text>"#,
            top + 14,
            escaped(&label(group.name)),
            escaped(group.name)
        );
        draw!(
            self,
            r#"<text x="24" y="{}" class="address">{:x}-{:x}  {}</text>"#,
            top + 26,
            first.start,
            last.end,
            quantity::bytes(bytes)
        );
        self.y = top + 6;
        for mapping in &group.mappings {
            self.mapping(mapping);
        }
        self.y = self.y.max(top + LABEL) + 5;
    }

    fn mapping(&mut self, mapping: &MappingView) {
        draw!(
            self,
            r#"<text x="{}" y="{}" class="rights">{}</text>"#,
            LEFT - 8,
            self.y + 7,
            mapping.protection
        );
        let mut column = 0;
        let mut address = mapping.start;
        for (pages, class) in &mapping.runs {
            let folds = matches!(class.as_str(), "zero" | "file");
            if folds && *pages > ROWS_UNFOLDED * COLUMNS {
                self.folded(&mut column, *pages, class, address);
            } else {
                self.cells(&mut column, *pages, class, address);
            }
            address += pages * 4096;
        }
        self.y += ROW + 1;
        if column == 0 {
            // The last row ended exactly at the edge.
            self.y -= ROW;
        }
    }

    /// Draws a run, row by row.
    fn cells(&mut self, column: &mut u64, pages: u64, class: &str, address: u64) {
        let mut left = pages;
        while left > 0 {
            let count = left.min(COLUMNS - *column);
            // A gap between cells, so that pages can be counted, by a pattern: one element for each run, not for each page.
            draw!(
                self,
                r#"<rect x="{}" y="{}" width="{}" height="{}" fill="url(#{class})"><title>{:x}: {pages} pages {class}</title></rect>"#,
                LEFT + *column * CELL,
                self.y,
                count * CELL,
                ROW - 1,
                address
            );
            left -= count;
            *column += count;
            if *column == COLUMNS {
                *column = 0;
                self.y += ROW;
            }
        }
    }

    fn folded(&mut self, column: &mut u64, pages: u64, class: &str, address: u64) {
        if *column > 0 {
            self.y += ROW;
        }
        *column = 0;
        let colour = CLASSES
            .iter()
            .find(|(name, ..)| *name == class)
            .map_or("#ffffff", |(_, colour, _)| colour);
        draw!(
            self,
            r#"<rect x="{LEFT}" y="{}" width="{}" height="12" fill="{colour}" opacity="0.55"><title>{address:x}: {pages} pages {class}</title></rect><text x="{}" y="{}" class="fold">{pages} pages {class}, {}</text>"#,
            self.y,
            COLUMNS * CELL,
            LEFT + COLUMNS * CELL / 2,
            self.y + 9,
            quantity::bytes(pages * 4096)
        );
        self.y += 13;
    }

    fn finish(self, function: &str) -> String {
        let height = self.y + 24;
        let mut patterns = String::new();
        for (class, colour, _) in CLASSES {
            let _ = write!(
                patterns,
                r#"<pattern id="{class}" x="{LEFT}" width="{CELL}" height="{ROW}" patternUnits="userSpaceOnUse"><rect width="{}" height="{ROW}" fill="{colour}"/></pattern>"#,
                CELL - 1
            );
        }
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">
<title>Memory of {}</title>
<defs>{patterns}</defs>
<style>
text {{ font-family: "DejaVu Sans", "Helvetica Neue", Arial, sans-serif; fill: #26262a; }}
.title {{ font-size: 20px; font-weight: 600; }}
.name {{ font-size: 12px; }}
.small {{ font-size: 11px; fill: #62626a; }}
.address {{ font-size: 9.5px; font-family: "DejaVu Sans Mono", Menlo, monospace; fill: #73737a; }}
.rights {{ font-size: 8px; font-family: "DejaVu Sans Mono", Menlo, monospace; fill: #73737a; text-anchor: end; }}
.fold {{ font-size: 9px; fill: #44444a; text-anchor: middle; }}
</style>
<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
{}</svg>
"##,
            escaped(function),
            self.out
        )
    }
}

/// What fits beside the cells: the end of a path says most.
fn label(name: &str) -> String {
    const LONGEST: usize = 40;
    if name.is_empty() {
        return "anonymous".into();
    }
    let count = name.chars().count();
    if count <= LONGEST {
        return name.into();
    }
    let end: String = name.chars().skip(count - LONGEST + 1).collect();
    format!("\u{2026}{end}")
}

/// Text in XML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Not allowed in XML, not even escaped.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::shapes::ClassView;

    fn mapping(start: u64, name: &str, runs: &[(u64, &str)]) -> MappingView {
        let pages: u64 = runs.iter().map(|(pages, _)| pages).sum();
        MappingView {
            start,
            end: start + pages * 4096,
            protection: "rw-p".into(),
            name: name.into(),
            runs: runs.iter().map(|(n, c)| (*n, (*c).to_owned())).collect(),
        }
    }

    #[test]
    fn every_page_is_drawn_or_folded_once() {
        let memory = MemoryView {
            page_size: 4096,
            classes: vec![ClassView {
                class: "cold".into(),
                pages: 300,
                ..ClassView::default()
            }],
            mappings: vec![mapping(
                0x1000,
                "<a> & \"b\"",
                &[
                    (300, "cold"),
                    (3, "written"),
                    (100_000, "zero"),
                    (81, "read"),
                ],
            )],
            ..MemoryView::default()
        };
        let svg = svg("f", &memory);
        let widths: u64 = svg
            .lines()
            .filter(|line| line.contains("fill=\"url(#"))
            .filter(|line| line.starts_with("<rect"))
            .filter_map(|line| {
                line.split("width=\"")
                    .nth(1)?
                    .split('"')
                    .next()?
                    .parse::<u64>()
                    .ok()
            })
            .sum();
        assert_eq!(widths, (300 + 3 + 81) * CELL);
        assert!(svg.contains("100000 pages zero, 391 MiB"));
        assert!(svg.contains("&lt;a&gt; &amp; &quot;b&quot;"));
        assert!(!svg.contains("<a>"));
    }

    #[test]
    fn mappings_of_one_file_are_one_group() {
        let mappings = [
            mapping(0x1000, "a", &[(1, "file")]),
            mapping(0x2000, "a", &[(1, "cold")]),
            mapping(0x9000, "", &[(1, "zero")]),
        ];
        let names: Vec<(&str, usize)> = groups(&mappings)
            .iter()
            .map(|group| (group.name, group.mappings.len()))
            .collect();
        assert_eq!(names, [("a", 2), ("", 1)]);
    }

    #[test]
    fn long_names_keep_their_end() {
        let long = format!("/usr/lib/{}/libpython.so", "x".repeat(60));
        let short = label(&long);
        assert!(short.ends_with("/libpython.so") && short.chars().count() == 40);
    }
}
