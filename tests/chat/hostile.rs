//! Templates that would spend all time or all memory end in one line, and those that only look so run.

use spts::tokenizer::ChatTemplate;

use crate::models::{model, render, user};

/// One that spends what a template may spend has no second try.
#[test]
fn spent_fuel_is_the_end() {
    let (t, _) = model("llama");
    let source = "{% if messages[0].content is string %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}\
        {% endfor %}{% endif %}{% for p in messages[0].content %}{{ p.text }}{% endfor %}";
    let e = ChatTemplate::new(source, "", "").encode(&t, &user("x"), true).unwrap_err().to_string();
    assert!(e.contains("does more work than a chat template has to"), "{e}");
    // Long texts are compared, within bounds.
    let compares =
        "{% for i in range(99999) %}{% if messages[0].content ~ '' == messages[0].content %}{% endif %}{% endfor %}x";
    let e = ChatTemplate::new(compares, "", "").encode(&t, &user(&"the rain ".repeat(1 << 18)), true).unwrap_err();
    assert!(e.to_string().contains("does more work"), "{e}");
    let once =
        "{{ messages[0].content if messages[0].content != '' and messages[0].content == messages[0].content | trim }}";
    ChatTemplate::new(once, "", "").encode(&t, &user("the rain. ".repeat(1 << 18).trim()), true).unwrap();
}

#[test]
fn hostile_templates_end_in_one_line() {
    let nested = |open: &str, close: &str, n: usize| format!("{{{{ {}1{} }}}}", open.repeat(n), close.repeat(n));
    let mut hostile: Vec<String> = [
        "{%}",
        "{% %}",
        "{{}}",
        "{% generation",
        "{% for i in [1] %}{{ loop.cycle() }}{% endfor %}",
        "{% for i in [1] %}{{ loop.cycle(*[]) }}{% endfor %}",
        "{{ '{:1000000000000}'.format(1) }}",
        "{{ '{:.1000000000000f}'.format(1.5) }}",
        "{{ '%1000000000000d' | format(1) }}",
        "{{ '%*d' | format(1000000000000, 1) }}",
        "{{ 'a\nb' | indent(1000000000000) }}",
        "{{ [1] | tojson(indent=1000000000000) }}",
        "{{ [1] | batch(1000000000000, 'x') | list }}",
        "{{ [1] | slice(1000000000000) | list }}",
        "{{ 'x' * 1000000000000 }}",
        "{{ [1] * 1000000000000 }}",
        "{{ 2 ** 1000000000000 }}",
        "{{ strftime_now('%1000000000000d') }}",
        "{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.x = [{'a': ns}] %}{{ ns ~ '' }}",
        "{% set ns = namespace() %}{% set ns.x = [ns] | reverse %}{{ ns == ns }}",
        "{% set ns = namespace() %}{% set ns.x = {'a': ns}.items() %}{{ ns | string }}",
        "{% set a, ns = 1, namespace() %}{% set ns.x, a = [ns], 1 %}{{ ns | tojson }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% macro f(x, n) %}{% if n %}{{ f([x, x], n - 1) }}{% else %}{{ x }}{% endif %}{% endmacro %}{{ f(1, 60) }}",
        "{% macro f(x, n) %}{% if n %}{{ f([x, x], n - 1) }}{% else %}{{ x | tojson }}{% endif %}{% endmacro %}{{ f(1, 60) }}",
        "{% macro f(x, n) %}{% if n %}{{ f([x, x], n - 1) }}{% else %}{{ x ~ '' }}{% endif %}{% endmacro %}{{ f(1, 60) }}",
        "{% macro f(x, n) %}{% if n %}{{ f([x, x], n - 1) }}{% else %}{{ x | string }}{% endif %}{% endmacro %}{{ f(1, 60) }}",
        "{% macro f(x, n) %}{% if n %}{{ f([x, x], n - 1) }}{% else %}{{ [x] | join }}{% endif %}{% endmacro %}{{ f(1, 60) }}",
        "{% macro f(x, n) %}{% if n %}{{ f([x, x], n - 1) }}{% else %}{{ ','.join([x]) }}{% endif %}{% endmacro %}{{ f(1, 60) }}",
        "{% macro f(a, x=1, n=60) %}{% if n %}{{ f(a, x=[x, x], n=n - 1) }}{% else %}{{ x ~ '' }}{% endif %}{% endmacro %}{{ f([1, 2]) }}",
        "{% macro f(n) %}{{ caller([n, n]) }}{% endmacro %}{% call(x) f(1) %}{% call(x) f(x) %}{{ x }}{% endcall %}{% endcall %}{{ 1 // 0 }}",
        "{% for x in [1] recursive %}{{ loop([[x, x]]) if loop.depth < 60 else x ~ '' }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s.replace('x', ns.s) %}{% endfor %}{{ ns.s }}",
        "{% set s = 'x' * 1000000 %}{{ s.join(range(99999)) }}",
        "{% set s = 'x' * 2000000 %}{{ s }}",
        "{% include 'x' %}",
        "{{ debug() }}",
    ]
    .map(String::from)
    .into();
    hostile.push(format!("{}{{{{ x ~ '' }}}}{}", "{% with x = [x, x] %}".repeat(60), "{% endwith %}".repeat(60)));
    hostile.push(format!(
        "{}{{{{ x ~ '' }}}}{}",
        "{% with (x, y) = [[x, x], 1], z = (1, 2) %}".repeat(60),
        "{% endwith %}".repeat(60)
    ));
    hostile.push(format!("{}{{{{ x ~ '' }}}}{}", "{% for x in [[x, x]] %}".repeat(60), "{% endfor %}".repeat(60)));
    for n in [200, 2_000, 100_000] {
        hostile.push(nested("[", "]", n));
        hostile.push(nested("(", ")", n));
        hostile.push(nested("{'a':", "}", n));
        hostile.push(nested("not ", " x", n));
        hostile.push(nested("x[", "]", n));
        hostile.push(format!("{}x{}", "{% if 1 %}".repeat(n), "{% endif %}".repeat(n)));
    }
    for n in [5_000, 100_000] {
        hostile.push(nested("-", "", n));
        hostile.push(nested("1 ~ ", "", n));
        hostile.push(nested("1 ** ", "", n));
        hostile.push(nested("", " | abs", n));
        hostile.push(nested("x", ".a", n));
        hostile.push(format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(n)));
    }
    hostile.push("x".repeat(2 << 20));
    for source in hostile {
        let shown: String = source.chars().take(160).collect();
        let e = match render(&source) {
            Err(e) => e.to_string(),
            Ok(text) => panic!("{shown}: {} bytes", text.len()),
        };
        assert!(e.starts_with("key `tokenizer.chat_template`: "), "{shown}: {e}");
        assert!(!e.contains('\n') && e.len() < 600, "{shown}: {e}");
    }
}

/// Work on long texts and lists is counted: what stands behind too much of it is not reached.
#[test]
fn too_much_work_ends_before_what_is_behind_it() {
    for source in [
        "{% set x = [] %}{% for i in range(99999) %}{% set x = [x] %}{{ x | length }}{% endfor %}{% for i in range(9) %}{% set y = [y] %}{% endfor %}{{ 1 // 0 }}",
        "{% set s = 'x' * 10000000 %}{% for i in range(99999) %}{% if s.count('xy') %}{% endif %}{% endfor %}{{ 1 // 0 }}",
        "{% set a = 'x' * 3000000 %}{% set b = 'x' * 3000000 %}{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}{{ 1 // 0 }}",
        "{% set a = 'x' * 3000000 %}{% set b = 'x' * 3000000 %}{% for i in range(99999) if a < b %}{% endfor %}{{ 1 // 0 }}",
        "{% set a = 'x' * 3000000 %}{% set b = 'x' * 3000000 %}{{ ([a] * 99999) | select('equalto', b) | list | length }}{{ 1 // 0 }}",
        "{% set a = 'x' * 3000000 %}{% set b = 'x' * 3000000 %}{% set l = [a, b] * 50000 %}{{ l | sort | length }}{{ 1 // 0 }}",
        "{% set a = 'x' * 3000000 %}{% set b = 'x' * 2999999 ~ 'y' %}{% set l = [a] * 99999 %}{{ b in l }}{{ 1 // 0 }}",
        "{% set a = 'x' * 3000000 %}{% set b = 'x' * 2999999 ~ 'y' %}{% set l = [a] * 99999 %}{{ b is in l }}{{ 1 // 0 }}",
    ] {
        let e = render(source).unwrap_err().to_string();
        assert!(e.contains("does more work than a chat template has to"), "{source}: {e}");
    }
}

#[test]
fn deep_but_harmless_templates_run() {
    for (source, expected) in [
        (format!("{{{{ {}1 }}}}", "-".repeat(2_000)), "1"),
        (format!("{{{{ 1{} }}}}", " + 1".repeat(1_000)), "1001"),
        (format!("{{% if 0 %}}{}{{% else %}}x{{% endif %}}", "{% elif 0 %}".repeat(1_000)), "x"),
    ] {
        assert_eq!(render(&source).unwrap(), expected);
    }
    // A long message may be copied and taken apart.
    let copies = "{% for m in messages %}{% set c = m.content | trim %}{% set c = c ~ '' %}{{ c.split('#')[0] + c }}{% endfor %}";
    let text = "the rain ".repeat(1 << 19);
    let written = ChatTemplate::new(copies, "", "").apply(&user(&text), true).unwrap();
    assert_eq!(written.len(), 2 * text.trim().len());
}
