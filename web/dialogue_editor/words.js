// @ts-check
/** What the editor says, in the six languages of the pack's translations. */

const LOCALES = ["en", "zh", "ja", "ko", "fr", "de"];

/** A row per phrase, a column per locale; ``#`` stands for a number, ``|`` parts one from several. */
const PHRASES = {
    editor: ["Dialogue editor", "对白编辑器", "セリフエディター", "대사 편집기", "Éditeur de dialogue", "Dialogeditor"],
    cast: ["Cast", "角色", "登場人物", "등장인물", "Distribution", "Besetzung"],
    lines: ["Lines", "台词", "セリフ", "대사", "Répliques", "Sätze"],
    line: ["Line", "台词", "セリフ", "대사", "Réplique", "Satz"],
    speaker: ["Speaker", "说话人", "話者", "화자", "Voix", "Person"],
    addSpeaker: ["Add a speaker", "添加说话人", "話者を追加", "화자 추가", "Ajouter une voix", "Person hinzufügen"],
    newSpeaker: ["New speaker…", "新说话人…", "新しい話者…", "새 화자…", "Nouvelle voix…", "Neue Person…"],
    removeSpeaker: ["Remove this speaker", "移除此说话人", "この話者を削除", "이 화자 삭제", "Retirer cette voix", "Person entfernen"],
    nobody: ["Nobody", "无人", "なし", "없음", "Personne", "Niemand"],
    name: ["Name", "名字", "名前", "이름", "Nom", "Name"],
    nameHint: ["name", "名字", "名前", "이름", "nom", "Name"],
    description: ["How the speaker looks", "说话人的样子", "話者の見た目", "화자의 모습", "Apparence", "Aussehen"],
    descriptionHint: ["young woman, red coat", "young woman, red coat", "young woman, red coat", "young woman, red coat", "young woman, red coat", "young woman, red coat"],
    voice: ["Voice", "嗓音", "声", "목소리", "Timbre", "Stimme"],
    voiceHint: ["low and warm", "low and warm", "low and warm", "low and warm", "low and warm", "low and warm"],
    side: ["Side of the picture", "画面位置", "画面内の位置", "화면 위치", "Côté de l'image", "Seite im Bild"],
    anySide: ["any side", "任意位置", "位置自由", "위치 무관", "côté libre", "Seite frei"],
    left: ["left", "左", "左", "왼쪽", "gauche", "links"],
    centre: ["centre", "中", "中央", "가운데", "centre", "Mitte"],
    right: ["right", "右", "右", "오른쪽", "droite", "rechts"],
    language: ["Language", "语言", "言語", "언어", "Langue", "Sprache"],
    Mandarin: ["Mandarin", "普通话", "中国語", "중국어", "Mandarin", "Mandarin"],
    Cantonese: ["Cantonese", "粤语", "広東語", "광둥어", "Cantonais", "Kantonesisch"],
    English: ["English", "英语", "英語", "영어", "Anglais", "Englisch"],
    Japanese: ["Japanese", "日语", "日本語", "일본어", "Japonais", "Japanisch"],
    Korean: ["Korean", "韩语", "韓国語", "한국어", "Coréen", "Koreanisch"],
    French: ["French", "法语", "フランス語", "프랑스어", "Français", "Französisch"],
    German: ["German", "德语", "ドイツ語", "독일어", "Allemand", "Deutsch"],
    delivery: ["Delivery", "语气", "言い方", "말투", "Ton", "Vortrag"],
    pace: ["Pace", "语速", "速さ", "속도", "Débit", "Tempo"],
    "very slow": ["very slow", "很慢", "とても遅い", "매우 느림", "très lent", "sehr langsam"],
    slow: ["slow", "慢", "遅い", "느림", "lent", "langsam"],
    natural: ["natural", "自然", "自然", "자연스럽게", "naturel", "natürlich"],
    fast: ["fast", "快", "速い", "빠름", "rapide", "schnell"],
    "very fast": ["very fast", "很快", "とても速い", "매우 빠름", "très rapide", "sehr schnell"],
    start: ["Starts at, in seconds", "开始时间（秒）", "開始（秒）", "시작 (초)", "Début, en secondes", "Beginn in Sekunden"],
    pause: ["Silence after it, in seconds", "之后的停顿（秒）", "後の間（秒）", "뒤의 침묵 (초)", "Silence après, en secondes", "Stille danach in Sekunden"],
    at: ["at", "始", "開始", "시작", "à", "ab"],
    gap: ["pause", "停顿", "間", "쉼", "pause", "Pause"],
    auto: ["auto", "自动", "自動", "자동", "auto", "auto"],
    typeHere: ["What is said", "说的话", "話す言葉", "할 말", "Ce qui est dit", "Was gesagt wird"],
    empty: [
        "Nobody speaks yet. Add a line, and paste a whole dialogue into it.",
        "还没有台词。添加一行，也可以把整段对白粘贴进去。",
        "まだセリフがありません。一行追加すれば、会話をまとめて貼り付けられます。",
        "아직 대사가 없습니다. 한 줄을 추가하고 대화 전체를 붙여 넣을 수도 있습니다.",
        "Personne ne parle encore. Ajoutez une réplique ; on peut y coller tout un dialogue.",
        "Noch spricht niemand. Ein Satz dazu, und ein ganzer Dialog lässt sich hineinkopieren.",
    ],
    addLine: ["Line", "台词", "セリフ", "대사", "Réplique", "Satz"],
    removeLine: ["Remove this line", "删除此台词", "このセリフを削除", "이 대사 삭제", "Supprimer la réplique", "Satz löschen"],
    asTyped: ["say as typed", "照原文念", "そのまま読む", "쓴 대로 읽기", "dire tel quel", "wie getippt"],
    saidAsTyped: ["said as typed", "照原文念出", "そのまま読まれます", "쓴 대로 읽습니다", "dit tel quel", "wird wie getippt gesagt"],
    spellOut: ["spell out", "转写读法", "読み下す", "풀어 읽기", "en toutes lettres", "ausschreiben"],
    shot: ["Shot", "镜头", "ショット", "샷", "Plan", "Einstellung"],
    addShot: ["Shot", "镜头", "ショット", "샷", "Plan", "Einstellung"],
    joinShot: ["Join to the shot before", "并入上一镜头", "前のショットに結合", "앞 샷에 합치기", "Joindre au plan précédent", "Mit der vorigen verbinden"],
    action: ["What happens besides speaking", "说话以外的动作", "話す以外の動き", "말 외의 동작", "Ce qui se passe en plus", "Was sonst geschieht"],
    actionHint: ["what happens besides", "其他动作", "その他の動き", "그 밖의 동작", "ce qui se passe", "was sonst geschieht"],
    framing: ["Framing", "景别", "フレーミング", "구도", "Cadrage", "Bildausschnitt"],
    "close-up": ["close-up", "特写", "クローズアップ", "클로즈업", "gros plan", "Großaufnahme"],
    "medium close-up": ["medium close-up", "中近景", "バストショット", "미디엄 클로즈업", "plan rapproché", "Nahaufnahme"],
    "medium shot": ["medium shot", "中景", "ミディアムショット", "미디엄 샷", "plan moyen", "Halbnah"],
    "wide shot": ["wide shot", "远景", "ワイドショット", "와이드 샷", "plan large", "Totale"],
    error: ["Error", "错误", "エラー", "오류", "Erreur", "Fehler"],
    warning: ["Warning", "警告", "警告", "경고", "Attention", "Warnung"],
    note: ["Note", "提示", "メモ", "참고", "Remarque", "Hinweis"],
    fix: ["fix", "修正", "修正", "고치기", "corriger", "beheben"],
    applyFix: ["Apply this fix", "应用此修正", "この修正を適用", "이 수정 적용", "Appliquer cette correction", "Korrektur übernehmen"],
    timeline: ["Timeline", "时间轴", "タイムライン", "타임라인", "Chronologie", "Zeitachse"],
    fill: ["Fill", "占用", "充填", "채움", "Durée", "Füllung"],
    under: ["under", "偏少", "余り", "부족", "trop vide", "zu leer"],
    good: ["good", "合适", "良好", "적당", "bien", "gut"],
    tight: ["tight", "偏紧", "きつい", "빠듯", "serré", "knapp"],
    over: ["over", "超出", "超過", "초과", "trop plein", "zu voll"],
    tokens: ["Tokens", "词元", "トークン", "토큰", "Jetons", "Token"],
    about: ["about", "约", "約", "약", "environ", "etwa"],
    prompt: ["Prompt", "提示词", "プロンプト", "프롬프트", "Prompt", "Prompt"],
    negative: ["Negative", "负面", "ネガティブ", "네거티브", "Négatif", "Negativ"],
    report: ["Report", "报告", "レポート", "보고", "Rapport", "Bericht"],
    copy: ["copy", "复制", "コピー", "복사", "copier", "kopieren"],
    copied: ["copied", "已复制", "コピー済み", "복사됨", "copié", "kopiert"],
    again: ["try again", "重试", "再試行", "다시 시도", "réessayer", "erneut versuchen"],
    startAnew: ["start anew", "重新开始", "新しく始める", "새로 시작", "recommencer", "neu beginnen"],
    kept: ["What you typed is kept.", "已输入的内容都保留着。", "入力内容は保持されています。", "입력한 내용은 그대로 있습니다.", "Votre texte est conservé.", "Das Getippte bleibt erhalten."],
    unreadable: ["This is no scene:", "无法读取场景：", "場面として読めません：", "장면으로 읽을 수 없습니다:", "Scène illisible :", "Das ist keine Szene:"],
    linked: [
        "Lines come from the connected nodes. Run the workflow to see them here.",
        "台词来自相连的节点；运行工作流后在此显示。",
        "セリフは接続されたノードから来ます。実行するとここに表示されます。",
        "대사는 연결된 노드에서 옵니다. 실행하면 여기에 표시됩니다.",
        "Les répliques viennent des nœuds reliés. Lancez le workflow pour les voir ici.",
        "Die Sätze kommen von den verbundenen Knoten. Nach einem Lauf stehen sie hier.",
    ],
    removed: ["Line # removed", "已删除台词 #", "セリフ # を削除しました", "대사 # 삭제됨", "Réplique # supprimée", "Satz # gelöscht"],
    movedTo: ["Now line #", "现为台词 #", "セリフ # になりました", "이제 대사 #", "Maintenant réplique #", "Jetzt Satz #"],
    noMore: ["Nothing to undo", "没有可撤销的", "元に戻す操作はありません", "되돌릴 것이 없음", "Rien à annuler", "Nichts rückgängig zu machen"],
    syllable: ["# syllable|# syllables", "# 音节", "# 音節", "# 음절", "# syllabe|# syllabes", "# Silbe|# Silben"],
    mora: ["# mora|# morae", "# 拍", "# 拍", "# 모라", "# more|# mores", "# More|# Moren"],
    character: ["# character|# characters", "# 字", "# 文字", "# 글자", "# caractère|# caractères", "# Zeichen|# Zeichen"],
    frames: ["# frame|# frames", "# 帧", "# フレーム", "# 프레임", "# image|# images", "# Bild|# Bilder"],
};

/**
 * The editor's words in the host's language; English where there is none.
 * @param {string | undefined} locale such as "fr" or "zh-TW"
 */
export function wordsIn(locale) {
    const [code] = (locale ?? "en").split("-");
    const column = Math.max(0, LOCALES.indexOf(code));
    const language = LOCALES[column];
    const phrases = /** @type {Record<string, string>} */ (
        Object.fromEntries(Object.entries(PHRASES).map(([key, row]) => [key, row[column]]))
    );
    const plural = new Intl.PluralRules(language);
    const number = (/** @type {number} */ value, digits = 1) =>
        value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
    const counted = (/** @type {string} */ phrase, /** @type {number} */ count) => {
        const [one, several = one] = phrase.split("|");
        const whole = Number.isInteger(count) ? 0 : 1;
        return (plural.select(count) === "one" ? one : several).replace("#", number(count, whole));
    };
    const seconds = (/** @type {number} */ value, digits = 1) => `${number(value, digits)} s`;
    return {
        ...phrases,
        seconds,
        units: (/** @type {number} */ count, /** @type {string} */ unit) => counted(phrases[unit], count),
        span: (/** @type {number} */ start, /** @type {number} */ end) => `${number(start)}–${seconds(end)}`,
        range: (/** @type {number} */ fast, /** @type {number} */ natural, /** @type {number} */ slow) =>
            `${phrases.fast} ${seconds(fast)} · ${phrases.natural} ${seconds(natural)} · ${phrases.slow} ${seconds(slow)}`,
        length: (/** @type {number} */ value, /** @type {number} */ frames) =>
            `${seconds(value, 2)} · ${counted(phrases.frames, frames)}`,
        removed: (/** @type {number} */ place) => counted(phrases.removed, place),
        movedTo: (/** @type {number} */ place) => counted(phrases.movedTo, place),
        unreadable: (/** @type {string} */ reason) => `${phrases.unreadable} ${reason}.`,
    };
}
