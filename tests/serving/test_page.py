"""The page in a real browser, where there is one."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from waiting import until

webdriver = pytest.importorskip('selenium.webdriver')
from selenium.webdriver.common.keys import Keys  # noqa: E402

pytestmark = pytest.mark.slow

BROWSER, DRIVER = (shutil.which(name) for name in ('chromium', 'chromedriver'))


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    if not (BROWSER and DRIVER):
        pytest.skip('no chromium and chromedriver here')
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    folder = tmp_path_factory.mktemp('browser')
    for flag in ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
                 '--disable-background-networking', '--disable-component-update', '--disable-sync',
                 '--disable-dev-shm-usage', f'--user-data-dir={folder}'):  # fmt: skip
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, serving):
    browser.get(serving.url)
    until(lambda: browser.find_element('id', 'model').text == 'tiny')
    yield browser
    problems = [each for each in browser.get_log('browser') if 'favicon' not in each['message']]
    assert not [each for each in problems if 'status of 400' not in each['message']], problems


def say(page, text):
    page.find_element('id', 'text').send_keys(text)
    page.find_element('id', 'send').click()
    until(lambda: page.find_element('id', 'send').text == 'Send')


def bubbles(page, role):
    return page.find_elements('css selector', f'.{role}')


def test_a_conversation(page):
    """Until the model has drawn an image; every answer is shown, and the next turn follows it."""
    for turn in range(8):
        say(page, 'draw a flag')
        answers = bubbles(page, 'assistant')
        assert len(answers) == turn + 1
        images = answers[-1].find_elements('tag name', 'img')
        if images or 'error' in answers[-1].get_attribute('class'):  # the row is full
            break
    for image in images:
        assert page.execute_script('return arguments[0].naturalWidth', image) == 64
    page.find_element('id', 'new').click()
    assert not bubbles(page, 'assistant') and not bubbles(page, 'user')


def ink(page, canvas):
    """Colours on a canvas."""
    return page.execute_script(
        """const {width, height} = arguments[0], found = new Set();
        const data = arguments[0].getContext('2d').getImageData(0, 0, width, height).data;
        for (let i = 0; i < data.length; i += 4)
            if (data[i + 3]) found.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]);
        return found.size;""",
        canvas,
    )


def draw(page, text):
    """What is drawn from the text: the figure, once it is finished."""
    page.find_element('id', 'text').send_keys(text)
    page.find_element('id', 'draw').click()
    until(lambda: page.find_element('id', 'send').text == 'Send')
    (figure,) = bubbles(page, 'assistant')[-1].find_elements('tag name', 'figure')
    return figure


def test_an_image_comes_out_of_noise_after_its_tokens(page):
    """Also one that is made from another: it is used in the next message."""
    for _ in range(2):
        page.find_element('id', 'new').click()
        figure = draw(page, 'a red heart')
        assert figure.get_attribute('aria-busy') == 'false'
        assert figure.get_attribute('data-tokens') == '4'
        assert figure.get_attribute('data-previews') == '3'
        assert ink(page, figure.find_element('tag name', 'canvas')) > 2
        image = figure.find_element('tag name', 'img')
        assert page.execute_script('return arguments[0].naturalWidth', image) == 64
        figure.find_element('css selector', 'small button').click()
        assert len(page.find_elements('css selector', '#shown img')) == 1
    figure = draw(page, 'a blue square')
    assert figure.get_attribute('data-previews') == '3'
    assert not page.find_elements('css selector', '#shown img')


def test_what_is_previewed_is_not_yet_the_image(page):
    """The sources of the image while it is drawn: three of noise, each of its own, and itself."""
    page.execute_script(
        """window.seen = [];
        new MutationObserver(all => all.forEach(each => window.seen.push(each.target.src)))
            .observe(document.getElementById('talk'),
                     {subtree: true, attributes: true, attributeFilter: ['src']});"""
    )
    figure = draw(page, 'flag')
    seen = page.execute_script('return window.seen')
    assert len(seen) == len(set(seen)) == 4
    assert figure.find_element('tag name', 'img').get_attribute('src') == seen[-1]


def test_guidance_is_sent_once_it_is_moved(page):
    page.execute_script(
        """window.sent = []; window.plain ||= window.fetch;
        window.fetch = (url, how) => {
            window.sent.push(how.body);
            return window.plain(url, how);
        };"""
    )
    draw(page, 'flag')
    page.find_element('css selector', '#scales summary').click()
    tokens, pixels = page.find_elements('css selector', '#scales input')
    assert [each.get_attribute('value') for each in (tokens, pixels)] == ['2', '3']
    pixels.send_keys(Keys.ARROW_RIGHT)
    figure = draw(page, 'flag')
    assert figure.get_attribute('data-previews') == '3'
    first, second = map(json.loads, page.execute_script('return window.sent'))
    assert 'guidance_pixels' not in first and second['guidance_pixels'] == 3.5
    assert 'guidance_representation' not in second


@pytest.fixture
def photo(tmp_path):
    """The path of an image."""
    path = tmp_path / 'a.png'
    Image.fromarray(np.full((64, 64, 3), 120, np.uint8)).save(path)
    return str(path)


def test_an_image_is_asked_about(page, photo):
    page.find_element('id', 'file').send_keys(photo)
    until(lambda: page.find_elements('css selector', '#shown img'))
    say(page, 'flag')
    (asked,), (answer,) = bubbles(page, 'user'), bubbles(page, 'assistant')
    assert asked.find_elements('tag name', 'img') and asked.text == 'flag'
    assert 'error' not in answer.get_attribute('class')
    assert not page.find_elements('css selector', '#shown img')


def test_an_error_is_shown_and_the_conversation_goes_on(page, photo):
    """What was refused may be changed and sent again, with its image."""
    page.find_element('id', 'file').send_keys(photo)
    until(lambda: page.find_elements('css selector', '#shown img'))
    say(page, 'a ' * 150)
    (answer,) = bubbles(page, 'assistant')
    assert 'error' in answer.get_attribute('class') and 'data.capacity.text' in answer.text
    text = page.find_element('id', 'text')
    assert text.get_attribute('value').split() == ['a'] * 150
    text.clear()
    say(page, 'flag')
    assert 'error' not in bubbles(page, 'assistant')[-1].get_attribute('class')
    assert bubbles(page, 'user')[-1].find_elements('tag name', 'img')
    assert not page.find_elements('css selector', '#shown img') and not text.get_attribute('value')
