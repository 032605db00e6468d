"""Templates: what is filled in, and what their policies allow."""

import base64
import hashlib

from captioner.templates import fill, read_template, security_policy


def test_values_are_filled_in_once() -> None:
    assert fill("<b>{{name}}</b>{{text}}", {"name": "{{text}}", "text": "x"}) == "<b>{{text}}</b>x"


def test_included_files_are_part_of_a_template() -> None:
    style = read_template("inspection/base.css")
    assert style in read_template("inspection/report.html")
    assert "{{include" not in read_template("serving/page.html")


def test_a_policy_allows_the_scripts_and_styles_of_its_templates_and_nothing_else() -> None:
    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    templates = [
        "<style>a</style><script>b</script>",
        '<script type="application/json">{{data}}</script><script>\nü</script>',
    ]
    assert security_policy(templates, img_src="data:") == (
        f"default-src 'none'; script-src {hashed('b')} {hashed(chr(10) + 'ü')}; style-src {hashed('a')}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert security_policy(["<p>"]) == (
        "default-src 'none'; script-src 'none'; style-src 'none'; base-uri 'none'; form-action 'none'"
    )
