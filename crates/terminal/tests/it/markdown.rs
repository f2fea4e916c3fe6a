//! Markdown: what it looks like, and that it looks the same however it came.

use proptest::prelude::*;
use terminal::markdown::{Look, MarkdownStream, render};
use terminal::text::Line;

const PLAIN: Look = Look { width: 40, colour: false };

fn plain(text: &str, width: usize) -> String {
    let lines = render(text, Look { width, ..PLAIN });
    lines.iter().map(|line| line.to_text(false) + "\n").collect()
}

#[test]
fn every_kind_of_block_in_forty_columns() {
    let text = "\
# A title that is longer than the terminal is wide
Some *slanted*, **heavy** and ~~wrong~~ words with `code` in them, and a [link](http://a.b/c).

1. first
2. second, which is so long that it must go on
   - inside
   - [x] done

   more of the second

- loose

- list
> quoted words that are long enough to be broken
> > deeper

```rust
fn main() { println!(\"more than forty columns\"); }
```
---
| name | size |
|:-----|-----:|
| a    |    1 |
| \u{4f60}\u{597d} | 1000 |

<b>html</b> ![alt](i.png) <http://c.d>
";
    let expected = "\
# A title that is longer than the
# terminal is wide

Some *slanted*, **heavy** and ~~wrong~~
words with `code` in them, and a link
(http://a.b/c).

1. first
2. second, which is so long that it must
   go on
   \u{2022} inside
   \u{2022} [x] done
   more of the second

\u{2022} loose
\u{2022} list

> quoted words that are long enough to
> be broken
>
> > deeper

```rust
fn main() { println!(\"more than forty co
lumns\"); }
```

\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\
\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}

name \u{2502} size
\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}\u{253c}\u{2500}\u{2500}\u{2500}\u{2500}\u{2500}
a    \u{2502}    1
\u{4f60}\u{597d} \u{2502} 1000

<b>html</b> [image: alt] (i.png)
http://c.d
";
    assert_eq!(plain(text, 40), expected);
}

#[test]
fn styles_take_the_place_of_marks() {
    let look = Look { width: 80, colour: true };
    let lines = render("a **b** *c* `d`\n", look);
    let text = lines[0].to_text(true);
    assert_eq!(text, "a \u{1b}[1mb\u{1b}[0m \u{1b}[3mc\u{1b}[0m \u{1b}[36md\u{1b}[0m");
}

#[test]
fn a_table_gives_way_to_a_narrow_terminal() {
    let text = "| item | what it is for |\n|---|---|\n| hammer | to drive nails into wood |\n";
    let grid = plain(text, 24);
    assert!(grid.contains("hammer \u{2502} to drive nails\n       \u{2502} into wood"), "{grid}");
    let wide =
        "| a1 | b2 | c3 | d4 |\n|--|--|--|--|\n| some words | more words | others | last ones |\n";
    let records = plain(wide, 24);
    assert_eq!(
        records,
        "**a1**: some words\n".replace("**", "") + "b2: more words\nc3: others\nd4: last ones\n"
    );
}

#[test]
fn controls_do_not_reach_the_terminal() {
    let text = "a\u{1b}]0;title\u{7} `\u{9b}2J` \n\n```\u{1b}[31m\nx\u{8}\u{1b}c\n```\n[l](http://\u{1b}[1m)";
    for colour in [false, true] {
        for line in render(text, Look { width: 40, colour }) {
            for span in &line.spans {
                assert!(!span.text.chars().any(char::is_control), "{:?}", span.text);
            }
            let written = line.to_text(colour);
            let ours = ["\u{1b}[0m", "\u{1b}[2m", "\u{1b}[4m", "\u{1b}[36m"];
            let rest = ours.iter().fold(written, |text, ours| text.replace(ours, ""));
            assert!(!rest.chars().any(char::is_control), "{rest:?}");
        }
    }
    // A control character that is written as an entity is one, too.
    let lines = render("&#27;[2J &#x9b;2J &#10;\n```&#27;c\n```\n[l](<&#27;c>)", PLAIN);
    let text: String = lines.iter().map(|line| line.to_text(false)).collect();
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

#[test]
fn hostile_nesting_ends() {
    for mark in [">", "- ", "1. ", "*", "[", "> - ", "`", "|", "<a>"] {
        let text = mark.repeat(5_000);
        let lines = render(&text, PLAIN);
        assert!(lines.iter().all(|line| line.width() <= PLAIN.width), "{mark}");
    }
}

/// The final lines of a text that comes in pieces, with the live lines looked at in between.
fn in_pieces(pieces: &[&str], look: Look) -> Vec<Line> {
    let mut stream = MarkdownStream::new(look);
    let mut lines = Vec::new();
    for piece in pieces {
        lines.extend(stream.push(piece));
        stream.live(10);
    }
    lines.extend(stream.finish());
    lines
}

/// What Markdown is made of, so that random texts are full of it.
fn fragment() -> impl Strategy<Value = String> {
    let marks = [
        "# ",
        "## t\n",
        "- ",
        "* ",
        "+ a\n",
        "1. ",
        "2) b\n",
        "> ",
        "```",
        "```rs\n",
        "~~~\n",
        "    ",
        "\t",
        "\n",
        "\n\n",
        "---\n",
        "===\n",
        "--",
        "=",
        "| a | b |\n",
        "|---|:-:|\n",
        "| c |\n",
        "**",
        "*",
        "_",
        "`",
        "[x]",
        "[x]: /u\n",
        "(http://a)",
        "<div>\n",
        "</div>\n",
        "<!--",
        "-->",
        "\\",
        "&amp;",
        "word ",
        "two words",
        "\u{e9}",
        "\u{4f60}",
        "\u{1f600}",
        "\r\n",
        "  \n",
        "- [ ] ",
        "<?",
        "?>",
        "<script>\n",
    ];
    prop::sample::select(marks.to_vec()).prop_map(str::to_owned)
}

#[test]
fn an_empty_item_after_a_definition_is_cut_alike() {
    let look = Look { width: 20, colour: false };
    let text = "---\n\n[x]: /u\n*\n* | a | b |\n";
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    assert_eq!(in_pieces(&lines, look), render(text, look));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn cuts_do_not_change_what_is_shown(
        fragments in prop::collection::vec(fragment(), 1..24),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        width in 2_usize..50,
        colour: bool,
    ) {
        let text = fragments.concat();
        let look = Look { width, colour };
        let characters: Vec<usize> =
            text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| characters[cut.index(characters.len())]).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
        let whole = render(&text, look);
        prop_assert_eq!(&in_pieces(&pieces, look), &whole, "{:?}", pieces);
        let characters: Vec<&str> = characters.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
        prop_assert_eq!(&in_pieces(&characters, look), &whole, "{:?}", text);
        for line in &whole {
            prop_assert!(line.width() <= width, "{:?} in {}", line, width);
        }
    }
}
