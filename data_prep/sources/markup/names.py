"""Names that wikis give to namespaces, other wikis and redirects, for dumps that do not name their own.

A dump's header names its namespaces, but neither their older aliases nor the prefixes of other languages.
"""

# ruff: noqa: RUF001 -- words in many scripts

from __future__ import annotations

# Files, categories and media in the languages of MediaWiki: a row holds the names of one language or of several that
# share them. The English names hold everywhere.
_NAMESPACES = """
aafbeilding,plaetje|categorie,kategorie| / abruozdielis,vaizdas|kategorija,kateguorėjė|medėjė /
afbeelding,bestand|categorie| / afbeelding,gefre|categorie,guru| / apamduööt|bekätakthook|ciɛl /
archivi,immagine|categoria,categuria| / archivo,dossia,dosya|categoría,kateggoría,katēggoría|meddia,medya /
archivo,imagen|categoría|medio / archivu,ficheru,imaxe,imaxen|categoría|medios / archivu|categoria,categoría|mediu /
arkivo,imajo|kategorio| / arquivo,ficheiro,imagem|categoria|multimédia / arquivo,ficheiro,imagem|categoria|mídia /
attēls|kategorija| / barakas,berkas|kategori,tumbung| / beeld,lêer|kategorie| /
beld,belld,datei|kategorie,katejori,kattejori,saachjrop,saachjropp,saachjrupp,sachjrop|medie,medium,meedije,meedijum /
berkas,beureukaih,gambar|kategori,kawan|alat / berkas,gambar|kategori| / berkas|dalala| / berkas|kategori| /
bestaand,ofbeelding|categorie,kategorie,kattegerie| / bielde|kategorie| / bild,datei|kategorie| /
bild,datei|kategorie|medium / bild,fichier|kategorie| / bild,fil|kategori| / bilde,fil|kategori|medium /
biliþ,ymele|flocc| / billede,fiileq,fil|kategori,sumut atassuseq| / billede,fil|kategori| / chitro|shopni|mediya /
coadan|ronney|meanyn / dadai,datei|kadegorie,kategorie,sachgrubb|medium / dataja,wobraz|kategorija| /
dataja,wobraz|kategorija|medija / datei,feil|abdeeling,kategorie|medium / datei|kategorie|medium /
datnyvei|klesi|velsku / datoteca|categoria|multimedia /
datoteka,slika,слика|kategorija,категорија|medij,medija,медија / datoteka,slika|kategorija|medija,mediji /
datoteka,slika|kategorija|mediji / datoteka|kategorija| / delwedd|categori| / dencukaay|catégorie,wàll|xibaarukaay /
dosiero|kategorio|aŭdvidaĵo / dosya,dosye|kategori,kategoriya|mediya,medya / dosya,dosye|kategori,kategoriye|medya /
dosya,resim|kategori|medya,ortam / dosya|kategori,kategoriye|medya / dosya|kategori,kʼatʼegori|medya /
dôdaj|gadâgorii| / ewava|loma|mamind / eʼelyaaígíí|tʼááłáhági átʼéego| / faidhle|roinn-seòrsa|meadhan /
fail,imej|kategori| / fail,pilt|kategooria|meedia / fails|kategoreja|medeja / failu|kategourii|medii / fail|grup| /
fail|kategorii| / fajl|tispir|medja / fasciculus,imago|categoria| / fayl,paypay|kaarangay|medya /
fayl,resim,ресим|kategoriya,категория|медиа / fayl,räsem|törkem| / fayl,tasvir|kategoriya,turkum|mediya /
faýl|kategoriýa| / fexeiro,ficheiro,imagem|catadorie,categoria|multimédia / ficheiro,imaxe|categoría| /
fichier|catégorie|média / fichièr,imatge|categoria|mèdia / fichiér,émâge|catègorie|mèdia /
fichye,imaj|kategori|medya / figura,skeda|kategori,kategoria| / figura|categorìa| / figure|categorie| /
fiila|kategoriija| / fil|kategori|filpeikar / fisye|kalasi| / fitxategi,irudi|kategoria| /
fitxer,imatge|categoria| / fix|categoria| / fiùra,immagine|categoria,categurìa| / fişier,fișier,imagine|categorie| /
fájl,kép|kategória|média / fáìlì,àwòrán|ẹ̀ka|amóhùnmáwòrán / gambar|kategori| / gambar|kategori|média /
grafika,plik|kategoria| / hình,tập tin|thể loại|phương tiện / imachen|categoría| /
imagen,īxiptli|categoría,neneuhcāyōtl|mēdiatl / imagine|categoria| / imagine|categoria|multimedia /
imahen,payl|kategoriya|medya / imajen|kategoria,kategoría| / immaggine,immagine|categoria,categorîa| /
immagina|categuria| / immagine|categoria| / immàgini|categoria| / imådje|categoreye| / kiʻi,waihona|māhele|pāpaho /
kuva,tiedosto|luokka| / ladawan|kategorya|medio / litratu|katigoria| / magod,ragiv|klad|nünamakanäd /
mmàggini|catigurìa|mèdia / mynd|bólkur|miðil / mynd|flokkur|miðill /
natisinahikaniwoc|tipanictawin|tipatcimoctakewin / obrázok,súbor|kategória|médiá / ofbeeldienge|categorie| /
ofbyld|kategory| / papeles|kategoria|midia / picha|jamii|faili / pilt|katõgooria|meediä / plaetje|categorie| /
plik|kategoria,kategoryjo| / resim,ресим,файл|kategoriya,категория|медиа / restr,skeudenn|rummad| /
restren|class,klass| / rikcha|katiguriya|midya / rikcha|samiyachiy|midya /
räsem,изображение,рәсем,файл|törkem,категория,төркем|медиа / sary|catégorie,sokajy|média,rakitra /
seswantšho|setensele| / slika,датотека,слика|kategorija,категорија|medija,медиј,медија / slika|kategorija|datoteka /
soubor|kategorie|média / stampa|kategorija|medja,midja / su'wret|kategoriya| /
swret,сурет,سۋرەت|sanat,санат,سانات|taspa,таспа,تاسپا / ta'ãnga|ñemohenda| / talaksan|kategorya,kaurian|midya /
tugna|taggayt| / tóng-àn,文件|lūi-pia̍t,分類|mûi-thé,媒體 / usòrò,ákwúkwó orünotu|ébéonọr,òtù|midia,nká /
vaizdas|kategorija|medija / wêne|kategorî|medya / |categorie| / |nkyekyem| / |vibhag|saadhan / ||медиа /
íomhá|catagóir,rang|meán / òbrôzk|kategòrëjô| / şəkil|kateqoriya|mediya / αρχείο,εικόνα|κατηγορία|μέσο,μέσον /
αρχείον,εικόναν|κατηγορίαν|μέσον / акс|гурӯҳ|медиа / артовкс|категория|медия /
афаил,файл|акатегориа,категория|амедиа,медиа / билэ,ойуу|категория|миэдьийэ / боомг,зург|янз,әәшл|аһар /
ви́дъ,видъ,дѣло|катигорї,катигорїꙗ|срѣдьства / выява,файл|катэгорыя|мультымедыя / выява,файл|катэгорыя|мэдыя /
зображення,изображение,файл|категория,категорія|медиа,медіа / зураг,файл|ангилал|медиа /
изображение,няйф|категорие,категория|медиа / изображение,файл|категория|медиа / картинка,файл|категория|медия /
ныв,файл|категори|медиа / податотека,слика|категорија|медиум,медија / рәсем,файл|категория,төркөм|медиа /
сурат|категория|медиа / суред,файл|категория|медиа / сурт,файл,хlум|кадегар,категори,тоба|медиа,медйа /
файл|аңгылал,категория|медиа / файл|категори,категория|меди / файл|категори|медиа / файл|категорий,категория|медиа /
файл|категориэ,категория|медиа / файл|категория|медиа / файл|катеґорія|медіа / файл|оагӏат|медиа /
ӳкерчĕк|категори|медиа / պատկեր|կատեգորիա|մեդիա / בילד,טעקע|קאַטעגאָריע,קאטעגאריע|מעדיע / קובץ,תמונה|קטגוריה|מדיה /
أسگ,جانیا|دأسە|ڤارئسگأر / انځور,دوتنه|وېشنيزه|رسنۍ / اکس,ورق|تهر|رسانگ,میڈیا / تصویر,عکس|دسته,رده|مدیا /
تصویر,فائل,ملف|زمرہ|زریعہ,میڈیا,وسیط / تصویر,فائل|گٹھ|میڈیا / تصویر,پرونده|رج,رده|مدیا,مه‌دیا /
تصویر,پرونده|رده|رسانه,رسانه‌ای,مدیا / صورة,ملف|تصنيف|ميديا,وسائط / عڪس,فائل|زمرو|ذريعات / فائل|زمرہ|میڈیا /
فاىل,پرونده|جرگه,رده|مديا / فایل|بؤلمه|مدیا / فَیِل|زٲژ|میڈیا / پەڕگە|پۆل|میدیا / ھۆججەت|تۈر|ۋاسىتە /
ܠܦܦܐ|ܣܕܪܐ|ܡܝܕܝܐ / ފައިލު,ފައިލް|ޤިސްމު|މީޑިއާ / किपा|पुचः|माध्यम / चित्र,চিত্র,চিত্ৰ|श्रेणी,শ্রেণী,শ্ৰেণী|মাধ্যম /
चित्र|वर्ग|मिडिया / चित्र|श्रेणी|मिडिया / चित्र|श्रेणी|मीडिया / चित्रं,चित्रम्,सञ्चिका|वर्गः|माध्यम,माध्यमम् /
पटिमा|विभाग|मीडिया / फ़ाइल|ज़ॉज़|मीडिया / फाइल|श्रेणी|मेडिया / फायल|वर्ग,श्रेणी|माध्यम,मिडिया /
চিত্র|বিষয়শ্রেণী|মিডিয়া / ছবি|থাক|মিডিয়া / ਤਸਵੀਰ|ਸ਼੍ਰੇਣੀ|ਮੀਡੀਆ / ચિત્ર|શ્રેણી|દ્રશ્ય-શ્રાવ્ય (મિડિયા) /
ଫାଇଲ|ବିଭାଗ,ଶ୍ରେଣୀ|ମାଧ୍ୟମ / படிமம்|பகுப்பு|ஊடகம் / దస్త్రం,ఫైలు,బొమ్మ|వర్గం|మీడియా / ಚಿತ್ರ|ವರ್ಗ|ಮೀಡಿಯ /
ಫೈಲ್|ವರ್ಗೊ|ಮಾದ್ಯಮೊ / ചി,ചിത്രം,പ്ര,പ്രമാണം|വ,വി,വിഭാഗം,വർഗ്ഗം|മീഡിയ / ගොනුව,රූපය|ප්‍රවර්ගය|මාධ්‍යය /
ภาพ,ไฟล์|หมวดหมู่|สื่อ / ຮູບ|ໝວດ|ສື່,ສື່ອ / ၾၢႆႇ|ပိူင်ထၢၼ်ႈ|သိုဝ်ႇၶၢဝ်ႇ / სურათი,ფაილი|კატეგორია|მედია /
ስዕል|መደብ|ፋይል / រូបភាព,ឯកសារ|ចំណាត់ក្រុម,ចំណាត់ថ្នាក់ក្រុម,ចំនាត់ថ្នាក់ក្រុម|មីឌា,មេឌា / ᱨᱮᱫ|ᱛᱷᱚᱠ|ᱢᱤᱰᱤᱭᱟ /
ファイル,画像|カテゴリ|メディア / 图,图像,圖,圖像,文件,档,档案,檔,檔案|分类,分類,类,類|媒体,媒體 /
图像,圖像,文件,档案,檔案|分类,分類|媒体,媒體 / 图像,文件,档案|分类|媒体,媒体文件 /
圖像,文件,檔案|分類|媒體 / 圖片|| / 文件|分類|媒體 / 文檔|分類|媒體 / 그림,파일|분류|미디어 / 𐍆𐌴𐌹𐌻𐌰|𐌷𐌰𐌽𐍃𐌰|
"""

#: rows of names of files, categories and media, in lower case with spaces
NAMESPACE_ROWS = tuple(
    tuple(frozenset(filter(None, names.split(","))) for names in row.strip().split("|"))
    for row in _NAMESPACES.replace("\n", " ").split(" / ")
)
ENGLISH_NAMESPACES = (frozenset({"file", "image"}), frozenset({"category"}), frozenset({"media"}))

#: prefixes of links to the same article in another language
_LANGUAGES = """
aa ab abs ace ady aeb af ak aln als alt am ami an ang ann anp ar arc arn arq ary arz as ast atj av avk awa ay az
azb ba ban bar bat-smg bbc bcc bcl bdr be be-tarask be-x-old bew bg bgn bh bho bi bjn blk bm bn bo bol bpy bqi br
brh bs bug bxr ca cbk-zam cdo ce ceb ch cho chr chy ckb co cps cr crh cs csb cu cv cy cz da dag de dga din diq dk
dsb dtp dty dv dz ee egl el eml en eo es et eu ext fa fat ff fi fit fiu-vro fj fo fon fr frc frp frr fur fy ga gag
gan gcr gd gl glk gn gom gor got gpe grc gsw gu guc gur guw gv ha hak haw he hi hif hil ho hr hrx hsb ht hu hy hyw
hz ia iba id ie ig igl ii ik ilo inh io is it iu ja jam jbo jp jut jv ka kaa kab kbd kbp kcg kg kge khw ki kiu kj
kk kl km kn knc ko koi kr krc kri krj krl ks ksh ku kum kus kv kw ky la lad lb lbe lez lfn lg li lij liv lld lmo
ln lo loz lrc lt ltg lus lv lzh lzz mad mai map-bms mdf mg mh mhr mi min minnan mk ml mn mni mnw mo mos mr mrj ms
mt mus mwl my myv mzn na nah nan nap nb nds nds-nl ne new ng nia niu nl nn no nov nqo nrm nso nup nv ny nys oc olo
om or os pa pag pam pap pcd pcm pdc pdt pfl pi pih pl pms pnb pnt prg ps pt pwn qu qug rgn rif rki rm rmy rn ro
roa-rup roa-tara rsk ru rue rup ruq rw sa sah sat sc scn sco sd sdc sdh se sei ses sg sgs sh shi shn si simple sk
skr sl sli sm sma smn sn so sq sr srn ss st stq sty su sv sw syl szl szy ta tay tcy tdd te tet tg th ti tig tk tl
tly tn to tok tpi tr tru trv ts tt tum tw ty tyv tzm udm ug uk ur uz ve vec vep vi vls vmf vo vot vro wa war wo
wuu xal xh xmf yi yo yue za zea zgh zh zh-cfr zh-classical zh-cn zh-min-nan zh-tw zh-yue zu
"""
LANGUAGE_CODES = frozenset(_LANGUAGES.split())

#: what follows the ``#`` of a redirect, in lower case
_REDIRECTS = """
redirect
aanstuur adkas ail-cyfeirio ailgyfeirio al aliah alidirekti alidirektu alih ancaminar athsheoladh aýdaw
beralîkirin birzuzendu daskedyans deurverwiezing dirección dirijar doorverwijzing duurverwiezing endrecera
fihodinana hetenayiş i̇sti̇qamətləndi̇r i̇sti̇qamətləndi̇rmə kiahou kúfù leidt_öm_op lencong ohjaus omdiriger
omdirigering ođđasitstivren patrz peradresavimas presmeruj preusmeri preusmeritev preusmjeri przekieruj pupinah
pusapuna přesměruj redireccio redireccion redirecció redirección redirecionamento redirecteaza redirection
redirèccion reendrecera renviament ridrejto rimando rindirizza rinvia rinvio saadaq stir stivren suuna tam
tilvísun uudelleenohjaus varda viruleedung weiterleitung wiederleiden yonaltirish yoʻnaltirish yönlendi̇r
yönlendi̇rme yönnendi̇r yönnendi̇rmä yönnendi̇rmäkler yünältü átirányítás æрвитæн æрвыст ömleide ömleide_op
ömleidung đổi ανακατευθυνση айдау види виж джибериу дӏасахьажор көжүрүлге перанакіраваньне перенапр
перенаправление перенаправлення пренасочване пренасочување преусмери преусмјери прѣнаправлєниѥ рарвыст редирект
тожәдән_истиғомәт_дој утаарыы утр хьажайо чиглүүлэг шигледир юнәлтү վերահղում הפניה ווייטערפירן ايداۋ بور تحويل
تغییر_مسیر تغییرمسیر رجوع_مکرر مڑجوڑ چوريو ܨܘܝܒܐ अनुप्रेषित अनुप्रेषितम् पुनर्निदेशन पुनर्निर्दिष्टम्
पुनर्निर्देशन पुनर्प्रेषित पुर्ननिर्देशन পুনঃনির্দেশ পুনঃর্নির্দেশ পুননির্দেশ পুনর্নির্দেশ ਰੀਡਿਰੈਕਟ ଲେଉଟାଣି
வழிமாற்று దారిమార్పు തിരിച്ചുവിടുക തിരിച്ചുവിടൽ යළියොමුව เปลี่ยนทาง გადამისამართება បញ្ជូនបន្ត ប្ដូរចំណងជើង
ប្ដូរទីតាំង ប្ដូរទីតាំងទៅ ប្តូរទីតាំង ប្តូរទីតាំងទៅ リダイレクト 転送 重定向 重新導向 넘겨주기
"""
REDIRECTS = frozenset(_REDIRECTS.split())
