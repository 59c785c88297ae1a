//! The language of templates is Jinja2's, with Python's methods.

use crate::models::render;

#[test]
fn python_methods_and_json() {
    let source = "{% for m in messages %}\n    {%- if m.content.strip().startswith('x') %}\
        {{ m.content.strip().split(' ')[-1].upper() }}{% endif %}\n{% endfor %}\
        {{ {'a': [1, 'ü'], 'b': {}} | tojson }}{{ {'k': [1]} | tojson(indent=2) }}\
        {% for k, v in {'q': 1}.items() %}{{ k }}={{ v }}{% endfor %}{{ {'q': 1}.get('z') }}\
        {{ '{:>5}|{}'.format('a', 1) }}{{ ', '.join(['a', 'b']) }}";
    assert_eq!(
        render(source).unwrap(),
        "HI{\"a\": [1, \"ü\"], \"b\": {}}{\n  \"k\": [\n    1\n  ]\n}q=1None    a|1a, b"
    );
}

#[test]
fn statements_that_are_rewritten_mean_the_same() {
    for (source, expected) in [
        ("{% set ns = namespace(n=1) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "4"),
        ("{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set x %}block{% endset %}{{ x }}", "12block"),
        ("{% set x = 'a' if false else 'b' %}{{ x }}{%- set y={'k': [1, 2]} -%}{{ y.k[1] }}", "b2"),
        ("{% for i in [1, 2, 3] if i != 2 %}{{ i }}{{ loop.last }}{% else %}none{% endfor %}", "1False3True"),
        ("{% for a in [[1, [2]]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}", "12"),
        ("{% for k, v in {'a': 1} | items %}{{ k }}{{ v }}{% endfor %}{% for x in nothing %}x{% endfor %}", "a1"),
        (
            "{% macro f(a, b=[1, (2)], c='x') -%}  {{ a }}{{ b[1] }}{{ c }}{% endmacro %}{{ f(1) }}{{ f(1, c=2) }}",
            "12x122",
        ),
        (
            "{% macro f(x) %}\n<{{ caller(x, 2) }}>{% endmacro %}{% call(a, b) f([1]) %}{{ a[0] }}{{ b }}{% endcall %}",
            "<12>",
        ),
        ("{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}c{% endcall %}", "c"),
        ("{% with a = [1, 2], (b, c) = (3, 4) %}{{ a[1] }}{{ b }}{{ c }}{% endwith %}", "234"),
        ("{% with %}w{% endwith %}", "w"),
        ("{# {% set x = y %} #}{% raw %}{% for x in none %}{% endraw %}{{ '{% set' }}", "{% for x in none %}{% set"),
        ("a {%- generation -%} b {% endgeneration %} c", "ab  c"),
        ("{{ none is iterable }}{{ [] is iterable }}{{ 'a' is iterable }}{{ 1 is iterable }}", "FalseTrueTrueFalse"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

/// As Jinja2: what is undefined is an empty list, `none` is none at all.
#[test]
fn none_is_not_iterable() {
    let e = render("\n{% for t in tools %}{% endfor %}").unwrap_err().to_string();
    assert!(e.contains("line 2: 'None' is not iterable"), "{e}");
    for filter in [
        "list",
        "join",
        "join(', ')",
        "first",
        "last",
        "min",
        "max",
        "sum",
        "sort",
        "unique | list",
        "reverse",
        "length",
        "count",
        "items | list",
        "dictsort",
        "batch(2) | list",
        "slice(2) | list",
        "groupby('a')",
    ] {
        for none in ["none", "tools", "(none)", "{'a': none}.a", "1 ~ (tools"] {
            let closing = if none.contains("~ (") { ")" } else { "" };
            let e = render(&format!("\n{{{{ {none} | {filter}{closing} }}}}")).unwrap_err().to_string();
            assert!(e.contains("line 2: 'None' is not iterable"), "{none} | {filter}: {e}");
        }
    }
    for (source, expected) in [
        ("{{ nothing | list }}{{ nothing | join }}{{ nothing | map('upper') | list }}{{ nothing | length }}", "[][]0"),
        // Of these Jinja2 takes what is false for empty.
        ("{{ none | map('upper') | list }}{{ tools | selectattr('type', 'equalto', 'x') | list | length }}", "[]0"),
        ("{{ none | select | list }}{{ none | reject | list }}{{ none | rejectattr('a') | list }}", "[][][]"),
        ("{{ none | default('d', true) | list | length }}{{ none | string }}{{ none is none }}", "1NoneTrue"),
        ("{{ [2, 1] | sort | join(',') }}{{ 'ab' | list | last }}{{ [1, none] | first }}", "1,2b1"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

#[test]
fn comparisons_mean_what_they_did() {
    for (source, expected) in [
        ("{{ 1 + 1 == 2 }}{{ 'a' ~ 'b' != 'ab' }}{{ -1 < 0 <= 0 }}{{ 2 ** 2 >= 4 > 3 }}", "TrueFalseTrueTrue"),
        ("{{ not 'a' in 'abc' }}{{ 'a' not in 'bc' }}{{ 1 in [1, 2] and 3 not in (1, 2) }}", "FalseTrueTrue"),
        ("{{ 4 is divisibleby 2 == true }}{{ 1 is in [1] }}{{ 1 is not in [1] }}{{ 1 is eq(1) }}", "TrueTrueFalseTrue"),
        (
            "{% for i in [1, 2, 3] if i in [1, 3] %}{{ i }}{% endfor %}{% for a, b in [(1, 2)] if a < b %}{{ b }}{% endfor %}",
            "132",
        ),
        (
            "{% set x = {'in': 1}.in == 1 %}{{ x }}{{ [1, 2] | select('gt', 1) | list }}{{ [1, 1] | map('eq', 1) | list if false else '' }}",
            "True[2]",
        ),
        ("{%- if messages[0].role=='user' and messages[0]['content']|trim=='x hi' %}y{% elif 1<2 %}n{% endif %}", "y"),
        ("{{ nothing == 1 }}{{ messages[0].nothing == none }}{{ 'x' if 'q' == 'q' else 'y' }}", "FalseFalsex"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

#[test]
fn the_time_is_local_and_in_pythons_codes() {
    let text = render("{{ strftime_now('%-d %B %Y, %I:%M %p, day %j, week %W, %Z') }}").unwrap();
    assert!(!text.contains('%') && text.contains(" 20") && text.contains("M, day "), "{text}");
}
