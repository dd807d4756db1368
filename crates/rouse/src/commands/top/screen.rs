//! The figures on a terminal, until somebody has seen enough.

use std::io;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Alignment, Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};
use ratatui::{DefaultTerminal, Frame};

use super::look;
use super::rates::Rates;
use super::text::{COLUMNS, cells, header};
use super::view::NodeView;
use crate::client::api::{ApiError, Client};
use crate::output::error::chain;
use crate::output::table::Align;

/// Shows a node until `q`. The terminal is given back as it was, whatever happens.
pub fn run(
    client: &Client,
    interval: Duration,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // Who calls a node that is not there should not see an empty screen.
    let first = look(client)?;
    let mut terminal = ratatui::try_init()?;
    let shown = show(&mut terminal, client, interval, first);
    ratatui::try_restore()?;
    Ok(shown?)
}

struct Screen {
    before: NodeView,
    rates: Option<Rates>,
    /// Why there are no newer figures.
    problem: Option<String>,
    table: TableState,
}

fn show(
    terminal: &mut DefaultTerminal,
    client: &Client,
    interval: Duration,
    first: NodeView,
) -> io::Result<()> {
    let mut screen = Screen {
        before: first,
        rates: None,
        problem: None,
        table: TableState::default(),
    };
    loop {
        let next = Instant::now() + interval;
        terminal.draw(|frame| screen.draw(frame))?;
        while let Some(rest) = next.checked_duration_since(Instant::now()) {
            if !event::poll(rest)? {
                break;
            }
            if !screen.hear(&event::read()?) {
                return Ok(());
            }
            terminal.draw(|frame| screen.draw(frame))?;
        }
        screen.take(look(client));
    }
}

impl Screen {
    fn take(&mut self, looked: Result<NodeView, ApiError>) {
        match looked {
            Ok(now) => {
                self.rates = Some(Rates::between(&self.before, &now));
                self.before = now;
                self.problem = None;
            }
            Err(error) => self.problem = Some(chain(&error).join(": ")),
        }
    }

    /// Says whether to go on.
    fn hear(&mut self, event: &Event) -> bool {
        let Event::Key(key) = event else { return true };
        if key.kind == KeyEventKind::Release {
            return true;
        }
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if is_control => return false,
            KeyCode::Down | KeyCode::Char('j') => self.table.select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.table.select_previous(),
            KeyCode::Home => self.table.select_first(),
            KeyCode::End => self.table.select_last(),
            _ => {}
        }
        true
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let Some(rates) = &self.rates else {
            frame.render_widget(
                Line::from("the first interval is not over yet"),
                frame.area(),
            );
            return;
        };
        let mut lines: Vec<Line<'_>> = header(rates).into_iter().map(Line::from).collect();
        if let Some(first) = lines.first_mut() {
            *first = first.clone().bold();
        }
        lines.push(match &self.problem {
            Some(problem) => Line::from(problem.clone()).fg(Color::Red),
            None => Line::from("q ends, up and down scroll").dim(),
        });
        let height = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        let [top, rest] =
            Layout::vertical([Constraint::Length(height), Constraint::Min(0)]).areas(frame.area());
        frame.render_widget(Paragraph::new(lines), top);
        frame.render_stateful_widget(table(rates), rest, &mut self.table);
    }
}

fn table(rates: &Rates) -> Table<'_> {
    let rows: Vec<[String; COLUMNS.len()]> = rates.functions.iter().map(cells).collect();
    let widths = COLUMNS.iter().enumerate().map(|(column, (name, _))| {
        let cells = rows.iter().map(|row| row[column].len());
        let width = cells.chain([name.len()]).max().unwrap_or(0);
        Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX))
    });
    let aligned = |text: String, align: Align| {
        let alignment = match align {
            Align::Left => Alignment::Left,
            Align::Right => Alignment::Right,
        };
        Cell::from(Text::from(text).alignment(alignment))
    };
    let widths: Vec<Constraint> = widths.collect();
    let names = COLUMNS.map(|(name, align)| aligned(name.to_owned(), align));
    let rows = rows.into_iter().zip(&rates.functions).map(|(row, one)| {
        let cells = row.into_iter().zip(COLUMNS);
        let cells = cells.map(|(text, (_, align))| aligned(text, align));
        let colour = match one {
            one if one.errors_per_s > 0.0 || one.throttles_per_s > 0.0 => Style::new().red(),
            one if one.calls_per_s == 0.0 => Style::new().dim(),
            _ => Style::new(),
        };
        Row::new(cells.collect::<Vec<_>>()).style(colour)
    });
    Table::new(rows, widths)
        .header(Row::new(names).style(Style::new().bold().underlined()))
        .row_highlight_style(Style::new().reversed())
        .column_spacing(2)
}
